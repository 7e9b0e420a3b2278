"""The report that users get: what a sweep shows, and the way to write it down."""

from __future__ import annotations

import os
from pathlib import Path

from .findings import Findings
from .write import write


class Report(Findings):
    """What a sweep shows; see `Findings`."""

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write `report.html`, `curves.csv`, `failures.csv` and a PNG for each panel; returns the paths.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return write(self, folder)
