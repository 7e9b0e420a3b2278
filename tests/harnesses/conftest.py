"""The tiny model and bank of the sweeps' tests."""

from tests.sweep.conftest import bank, model, tok  # noqa: F401
