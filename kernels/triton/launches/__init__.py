"""Which kernel runs a call, with which block and how many warps: the one place that chooses variants.

The same plans are launched on a device, compiled without one (`offline`) and counted in the tables of
predicted speed, so what is proven is what runs.
"""

from ..capability import INTERPRETED
from .moments import group_sums, scatter
from .plan import Launch, Rows
from .projection import combine_parts, project, project_extremes, project_parts, splits
from .steering import rms_norm, row_block, steer, steer_rms_norm

__all__ = [
    "INTERPRETED",
    "Launch",
    "Rows",
    "combine_parts",
    "group_sums",
    "project",
    "project_extremes",
    "project_parts",
    "rms_norm",
    "row_block",
    "scatter",
    "splits",
    "steer",
    "steer_rms_norm",
]
