"""Benchmarks: `static` predicts speed from machine code and published figures, `gpu` measures it on a device."""
