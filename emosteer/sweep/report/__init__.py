"""A report of a sweep: dose–response curves with intervals and control bands, as page, pictures and tables."""

from .curves import Curve, Estimate, Panel, Point
from .write import Failure, Report, report

__all__ = ["Curve", "Estimate", "Failure", "Panel", "Point", "Report", "report"]
