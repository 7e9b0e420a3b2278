"""The store: says what is done, appends parts, opens a table."""

from __future__ import annotations

import json
import os
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..metrics.row import Row
from .done import Done
from .lock import Lease, only_runner
from .places import WRITING, FolderError, place_of
from .rows import FAILED, FORMAT, OK, SCHEMA, part_bytes, read_part, table_of

MANIFEST = "_manifest.json"
BANK = "_bank.safetensors"
SET_ASIDE = "_set_aside"


class Store:
    """The folder of a sweep: `part-*.parquet`, and beside them `_manifest.json`.

    Parts are written whole (temporary name, fsync, rename, fsync of the folder) and never changed, so
    whatever happens to a runner, each result that was reported done is there, and none is there in part.
    pandas, polars and DuckDB read the folder as it is (`<folder>/part-*.parquet`).

    Everything that changes the folder wants `running()`; reading wants nothing and may happen meanwhile.
    Workers of one run may `append` side by side: names of parts never meet.

    Args:
        folder: local path or fsspec URL.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.place = place_of(folder)
        self.run_id = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}"
        self._written = 0
        self._lease: Lease | None = None
        self._aside: list[str] = []

    def __str__(self) -> str:
        return str(self.place)

    # ---- the manifest -------------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any]:
        """What the folder's results answer: definition, axes, metrics, versions.

        Raises:
            FileNotFoundError: no such folder, or none of a sweep.
            FolderError: a manifest of another format, or damaged.
        """
        try:
            content = self.place.read(MANIFEST)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"{self} is no folder of a sweep: it has no {MANIFEST}") from None
        try:
            found = json.loads(content)
            written = found["format"]
        except (ValueError, TypeError, KeyError) as error:
            raise FolderError(
                f"{self}/{MANIFEST} is damaged ({error}); run the same sweep into the folder again to restore it"
            ) from None
        if written != FORMAT:
            raise FolderError(f"{self} is of format {written!r}, this version of emosteer reads {FORMAT}")
        return found

    def write_manifest(self, content: Mapping[str, Any]) -> None:
        """Say what the folder's results answer from now on; earlier parts stay."""
        text = json.dumps({"format": FORMAT, **content}, indent=1, ensure_ascii=False)
        self._write(MANIFEST, text.encode())

    def write_bank(self, content: bytes) -> None:
        """Keep the bank's file beside the results."""
        self._write(BANK, content)

    def read_bank(self) -> bytes:
        """The bank's file."""
        return self.place.read(BANK)

    # ---- running ------------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[Store]:
        """Hold the folder alone, and clear what a killed runner left half written.

        Raises:
            FolderError: another runner has it, or the folder holds something else.
        """
        names = self.place.names()
        foreign = [n for n in names if not n.startswith(("_", "part-"))]
        if foreign and MANIFEST not in names:
            raise FolderError(f"{self} holds other files ({foreign[0]}); give a new or empty folder")
        with only_runner(self.place) as lease:
            self._lease = lease
            for name in self.place.names():
                if name.startswith(WRITING):
                    self.place.delete(name)
            try:
                yield self
            finally:
                self._lease = None

    def append(self, rows: Sequence[Row]) -> str:
        """Write results as one part; they are done once this returns. Returns the part's name.

        Raises:
            FolderError: it could not be written (a full disk, say); nothing of it is there then.
        """
        name = f"part-{self.run_id}-{self._written:06d}.parquet"
        self._write(name, part_bytes(table_of(rows)))
        self._written += 1
        return name

    def _write(self, name: str, content: bytes) -> None:
        if self._lease is not None:
            self._lease.check()
        try:
            self.place.write(name, content)
        except OSError as error:
            raise FolderError(
                f"{self}/{name} could not be written: {error.strerror or error}. Every row reported done is safe; "
                f"make room (or mend what the message says) and run the sweep again, it goes on from there"
            ) from error

    # ---- reading ------------------------------------------------------------------------------------

    def parts(self) -> list[str]:
        """The Parquet files of the folder, ours or not, oldest run first."""
        return [n for n in self.place.names() if n.endswith(".parquet") and not n.startswith("_")]

    def done(self) -> Done:
        """Which results are finished. Files that are no whole parts are set aside; wants `running()`."""
        done = Done(lambda name: read_part(self.place.read(name)))
        for name, table in self._tables(set_aside=True):
            done.add(name, table["unit"].to_pylist(), table["metric_id"].to_pylist())
        return done

    def table(self, *, everything: bool = False) -> pa.Table:
        """The finished results, one a unit and metric, each once.

        Where a unit and metric were written twice, the result that did not fail counts, then the latest.

        Args:
            everything: also results of earlier definitions of the sweep: other metrics, prompts, programs.

        Raises:
            FileNotFoundError: no folder of a sweep.
        """
        manifest = self.manifest()
        tables = [table for _, table in self._tables(set_aside=False)]
        found = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
        if not everything:
            found = _of(found, manifest)
        return _once(found.replace_schema_metadata(None))

    def set_aside(self) -> list[str]:
        """Names of the files that were no whole parts, found by this store."""
        return list(self._aside)

    def forget_failed(self) -> int:
        """Take the failed results out, so that they run again; wants `running()`. Returns how many."""
        count = 0
        for name, table in self._tables(set_aside=True):
            kept = table.filter(pc.equal(table["status"], OK))
            if len(kept) < len(table):
                count += len(table) - len(kept)
                self._write(name, part_bytes(kept))
        return count

    def _tables(self, *, set_aside: bool) -> Iterator[tuple[str, pa.Table]]:
        for name in self.parts():
            try:
                yield name, read_part(self.place.read(name))
            except FileNotFoundError:  # set aside by a runner meanwhile
                continue
            except ValueError as error:
                self._aside.append(name)
                where = "left out"
                if set_aside:
                    self.place.move(name, f"{SET_ASIDE}/{name}")
                    where = f"moved to {SET_ASIDE}/; what it held runs again"
                warnings.warn(f"{self}/{name} is {error}: {where}", stacklevel=3)


def _of(table: pa.Table, manifest: Mapping[str, Any]) -> pa.Table:
    """The results that the present definition asks for."""
    axes = manifest.get("axes", {})
    wanted = {**axes, "metric_id": list(manifest.get("metrics", {}))}
    for column, values in wanted.items():
        known = pa.array(values if isinstance(values, list) else [values], SCHEMA.field(column).type)
        table = table.filter(pc.is_in(table[column], value_set=known))
    return table


def _once(table: pa.Table) -> pa.Table:
    """One result a unit and metric."""
    n = len(table)
    place = pa.array(range(n), pa.int64())
    rank = pc.add(place, pc.multiply(pc.cast(pc.not_equal(table["status"], FAILED), pa.int64()), n))
    keyed = pa.table({"unit": table["unit"], "metric": table["metric_id"], "rank": rank})
    # One thread: where memory is short, a pool that cannot start its threads waits for them for ever.
    best = keyed.group_by(["unit", "metric"], use_threads=False).aggregate([("rank", "max")])["rank_max"]
    if len(best) == n:
        return table
    kept = sorted(r - n if r >= n else r for r in best.to_pylist())
    return table.take(pa.array(kept, pa.int64()))
