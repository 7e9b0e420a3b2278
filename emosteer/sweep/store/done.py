"""What a folder already holds: which results are finished, and the texts that need not be generated again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

# Parts whose texts are kept in memory.
_PARTS_KEPT = 4


class Done:
    """The finished results of a folder, by unit and metric; about 100 bytes each in memory.

    `("unit id", "metric id") in done`, failed results included.
    """

    def __init__(self, read: Callable[[str], pa.Table]) -> None:
        self._read = read
        self._part_of: dict[bytes, int] = {}
        self._parts: list[str] = []
        self._texts: OrderedDict[str, dict[str, tuple[int, ...]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._part_of)

    def __contains__(self, key: tuple[str, str]) -> bool:
        return _packed(*key) in self._part_of

    def add(self, part: str, units: Iterable[str], metric_ids: Iterable[str]) -> None:
        """Note the results of a part."""
        number = len(self._parts)
        self._parts.append(part)
        for unit, metric_id in zip(units, metric_ids):
            self._part_of[_packed(unit, metric_id)] = number

    def tokens(self, unit: str, text_id: str) -> tuple[int, ...] | None:
        """The generated tokens of a unit, None where there are none.

        Args:
            unit: its id.
            text_id: the id of the metric "text" with the present generation settings.
        """
        number = self._part_of.get(_packed(unit, text_id))
        if number is None:
            return None
        part = self._parts[number]
        key = f"{part} {text_id}"
        if key not in self._texts:
            self._texts[key] = _texts(self._read(part), text_id)
            while len(self._texts) > _PARTS_KEPT:
                self._texts.popitem(last=False)
        self._texts.move_to_end(key)
        return self._texts[key].get(unit)


def _texts(table: Any, text_id: str) -> dict[str, tuple[int, ...]]:
    rows = table.filter(pc.equal(table["metric_id"], text_id))
    return {
        unit: tuple(tokens)
        for unit, tokens in zip(rows["unit"].to_pylist(), rows["tokens"].to_pylist())
        if tokens is not None
    }


def _packed(unit: str, metric_id: str) -> bytes:
    return bytes.fromhex(unit + metric_id)
