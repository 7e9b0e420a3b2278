"""The backend of compiled row kernels (`csrc/cpu`), for tensors on the CPU."""

from .binding import _cpu, unavailable
from .moments import add_lower_triangle_, moments_update_
from .projection import project
from .repeated import remember_project, remember_steer_, repeat_project, repeat_steer_
from .steering import rms_norm, steer, steer_, steer_rms_norm_

__all__ = [
    "_cpu",
    "add_lower_triangle_",
    "moments_update_",
    "project",
    "remember_project",
    "remember_steer_",
    "repeat_project",
    "repeat_steer_",
    "rms_norm",
    "steer",
    "steer_",
    "steer_rms_norm_",
    "unavailable",
]
