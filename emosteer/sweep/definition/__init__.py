"""What is asked as a whole: the arguments of a sweep, as Python, YAML or a folder's manifest says them."""

from .definition import Definition
from .entries import DefinitionError

__all__ = ["Definition", "DefinitionError"]
