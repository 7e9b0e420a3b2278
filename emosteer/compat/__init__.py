"""Other steering libraries with our kernels inside: one file a library, `accelerate` puts them there."""

from .acceleration import Acceleration, accelerate

__all__ = ["Acceleration", "accelerate"]
