"""The operations on the residual stream: five small kernels, each with one definition and several backends."""

from . import registration  # noqa: F401  makes torch.ops.emosteer.*
from .backends import backend
from .extremes import project_extremes_
from .moments import Moments
from .public import moments_update_, project, rms_norm, steer, steer_, steer_rms_norm_
from .sites import NormSite, Site, SteerSite
from .table import SteerTable

__all__ = [
    "Moments",
    "NormSite",
    "Site",
    "SteerSite",
    "SteerTable",
    "backend",
    "moments_update_",
    "project",
    "project_extremes_",
    "rms_norm",
    "steer",
    "steer_",
    "steer_rms_norm_",
]
