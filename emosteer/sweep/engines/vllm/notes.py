"""What a request tells the workers: in the `extra_args` of its sampling parameters, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..local.held_rows import NO_ROW

# Not one of the keys of `emosteer.vllm`, which begin with "emosteer" and ask for a program of their own.
KEY = "sweep_note"


@dataclass(frozen=True)
class Note:
    """How a request is steered, read and drawn.

    Attributes:
        row: of the steering table.
        prompt: tokens that count as the prompt; what follows counts as generated.
        read: under which key the stream of what follows the prompt is read; None: it is not.
        seed: of the tokens drawn; None: the likeliest.
    """

    row: int = NO_ROW
    prompt: int = 0
    read: str | None = None
    seed: int | None = None

    def extra_args(self) -> dict[str, Any]:
        """For `SamplingParams`."""
        return {KEY: asdict(self)}

    @classmethod
    def of(cls, params: Any) -> Note | None:
        """The note of a request's sampling parameters, None for a request of somebody else's."""
        found = (getattr(params, "extra_args", None) or {}).get(KEY)
        return None if found is None else cls(**found)
