"""Results as a pyarrow table and as the bytes of a Parquet part."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

from ..metrics.row import Row

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError:
    raise ImportError('sweeps keep their rows in Parquet: pip install "emosteer[sweep]"') from None

FORMAT = 1
MARK = b"emosteer"
OK, FAILED = "ok", "failed"

SCHEMA = pa.schema(
    [
        ("unit", pa.string()),
        ("metric", pa.string()),
        ("status", pa.string()),
        ("value", pa.float64()),
        ("values", pa.list_(pa.struct([("name", pa.string()), ("value", pa.float64())]))),
        ("error", pa.string()),
        ("concept", pa.string()),
        ("strength", pa.float64()),
        ("control", pa.string()),
        ("program", pa.string()),
        ("prompt", pa.string()),
        ("prompt_text", pa.string()),
        ("seed", pa.int64()),
        ("positions", pa.string()),
        ("layers", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("tokens", pa.list_(pa.int32())),
        ("metric_id", pa.string()),
        ("program_id", pa.string()),
        ("prompt_id", pa.string()),
        ("model_id", pa.string()),
    ],
    metadata={MARK: json.dumps({"format": FORMAT}).encode()},
)


def table_of(rows: Sequence[Row]) -> pa.Table:
    """A pyarrow table of results."""
    return pa.Table.from_pylist([_record(row) for row in rows], schema=SCHEMA)


def _record(row: Row) -> dict[str, Any]:
    unit = row.unit
    return {
        "unit": unit.id,
        "metric": row.metric,
        "status": OK if row.error is None else FAILED,
        "value": row.value,
        "values": [{"name": name, "value": value} for name, value in row.values.items()],
        "error": row.error,
        "concept": unit.arm.concept,
        "strength": unit.arm.strength,
        "control": unit.arm.control,
        "program": str(unit.program),
        "prompt": unit.prompt.label,
        "prompt_text": unit.prompt.text,
        "seed": unit.seed,
        "positions": unit.positions,
        "layers": list(unit.layers),
        "text": row.text,
        "tokens": None if row.tokens is None else list(row.tokens),
        "metric_id": row.metric_id,
        "program_id": unit.program_id,
        "prompt_id": unit.prompt.id,
        "model_id": unit.model_id,
    }


def part_bytes(table: pa.Table) -> bytes:
    """A whole Parquet file, with a checksum on each page."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def read_part(content: bytes) -> pa.Table:
    """The results of a part.

    Raises:
        ValueError: no whole Parquet file, or not a part of a sweep; says which.
    """
    try:
        file = pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"no whole Parquet file ({_first_line(error)})") from None
    schema = file.schema_arrow
    mark = (schema.metadata or {}).get(MARK)
    if mark is None or not schema.equals(SCHEMA):
        raise ValueError("not written by a sweep: other columns")
    if json.loads(mark).get("format") != FORMAT:
        raise ValueError(f"of format {json.loads(mark).get('format')}, this version reads {FORMAT}")
    try:
        return file.read()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"damaged inside ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
