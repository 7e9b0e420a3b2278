"""A report of a sweep: dose–response curves with intervals and control bands, as page, pictures and tables.

`curves` and `findings` are numbers; `page`, `figure` and `write` draw them; a `Report` is both.
"""

from .curves import Curve, Estimate, Panel, Point
from .findings import Failure
from .report import Report

__all__ = ["Curve", "Estimate", "Failure", "Panel", "Point", "Report"]
