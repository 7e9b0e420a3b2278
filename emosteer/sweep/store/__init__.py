"""The folder of a sweep: finished results as Parquet parts, and a manifest of what they answer."""

from .done import Done
from .folder import Store
from .places import FolderError
from .rows import SCHEMA

__all__ = ["SCHEMA", "Done", "FolderError", "Store"]
