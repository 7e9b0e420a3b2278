"""What a study hands back: sentences, tables, pictures and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Table:
    """Rows under columns, as text or numbers."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]


@dataclass
class Found:
    """The outcome of a study.

    Attributes:
        name: short, for files and links.
        title: what was asked.
        method: how it was asked, in a sentence or two.
        findings: what came out, whether it was hoped for or not.
        tables: of it.
        pictures: matplotlib figures by file name.
        numbers: everything that JSON can hold.
        seconds: how long it took.
    """

    name: str
    title: str
    method: str
    findings: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: dict[str, Any] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
