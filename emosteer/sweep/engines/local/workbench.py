"""A model with all that its units need: tokenizer, bank, settings of text, and what memory holds."""

from __future__ import annotations

import warnings
from typing import Any

from emosteer.bank import Bank

from ...metrics.base import Seen
from ...metrics.reading import Readings
from ...metrics.row import Row
from ...plan.generation import Generation
from ..work import Work, rows_of
from .memory import Budget
from .passes import Passes
from .proof import why_not
from .steered import Steered


class Workbench:
    """What every window of units is run with; `Runner`, which runs them, describes the arguments."""

    def __init__(
        self,
        model: Any,
        tok: Any,
        bank: Bank,
        generation: Generation | None = None,
        *,
        relative: bool = False,
        batch_tokens: int | None = None,
        batch_rows: int | None = None,
        share: bool = True,
    ) -> None:
        self.model, self.tok, self.bank = model, tok, bank
        self.generation = generation or Generation()
        self.relative, self._share = relative, share
        self.passes = Passes(model)
        self.budget = Budget(self.passes, batch_tokens, batch_rows)
        self.sharing = "not tried yet" if share else "share=False was asked for"
        self._ids: dict[str, list[int]] = {}

    def from_text(self, work: Work) -> list[Row]:
        """The results of a unit whose text is all that its metrics want."""
        text = self.tok.decode(list(work.tokens or ()), skip_special_tokens=True)
        return rows_of(work, Seen(work.unit, text=text, tokens=work.tokens), self.generation)

    def too_long(self, work: Work) -> str | None:
        """Why a model with so many positions cannot take a unit; a GPU would not survive the attempt."""
        config: Any = getattr(self.passes.model, "config", None)
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        room = getattr(text, "max_position_embeddings", None)
        if not isinstance(room, int):
            return None
        follow = [len(self.ids(c)) for c in work.continuations]
        follow.append(self.generation.max_new_tokens if work.generates else len(work.tokens or ()))
        length = len(work.unit.prompt.tokens)
        if length + max(follow) <= room:
            return None
        return (
            f"the prompt has {length} tokens and up to {max(follow)} follow; the model has {room} positions"
        )

    def shares(self, steered: Steered) -> bool:
        """Whether the model can be run in pieces; tried once."""
        if self.sharing == "not tried yet":
            why = why_not(self.passes, steered, self.budget)
            self.sharing = "prompts are shared" if why is None else f"prompts are not shared: {why}"
            if why is not None:
                kind = type(self.passes.model).__name__
                warnings.warn(
                    f"{kind} cannot be run in pieces ({why}); its units run in batches of equal length instead, "
                    f"with the same outcome and more slowly",
                    stacklevel=2,
                )
        return self.sharing == "prompts are shared"

    def ids(self, continuation: str) -> list[int]:
        """Token ids of a continuation.

        Raises:
            ValueError: it has none.
        """
        if continuation not in self._ids:
            found = self.tok(continuation, add_special_tokens=False).input_ids
            if not len(found):
                raise ValueError(f"the continuation {continuation!r} has no token")
            self._ids[continuation] = list(found)
        return self._ids[continuation]

    def readings(self, work: Work) -> list[Readings]:
        """The reading metrics of a unit; they know their bank and layer (`Readings.on`)."""
        return [metric for metric in work.metrics if isinstance(metric, Readings)]
