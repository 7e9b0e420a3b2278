"""Triton device code, importable as `emosteer.kernels`. Importing this package has no side effects."""
