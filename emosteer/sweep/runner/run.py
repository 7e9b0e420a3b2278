"""The runner: a stream of units in, finished rows out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from emosteer.bank import Bank
from emosteer.models.batching import windows
from emosteer.models.capture import layer_at_two_thirds

from ..generation import Generation
from ..metrics.base import Seen
from ..metrics.reading import Readings
from ..row import Row
from .memory import Budget
from .passes import Passes
from .proof import why_not
from .steered import Steered
from .window import Window
from .work import Work, failed_rows, rows_of

# Units that are looked at together, to sort them by length.
WINDOW = 4096


class Runner:
    """One model that turns units into rows.

    Units of different programs, prompts and seeds run in one batch, a row of the steering table each;
    a prompt is run once for all programs, as far as none of them acts on it: its tokens before the first
    steered one, and all blocks up to the first steered one. Rows that end make room for others while
    the rest go on. Each unit's outcome is that of the unit alone, up to rounding.

    Args:
        model, tok: a causal language model and its tokenizer.
        bank: the directions that the units' programs name (`Plan.bank`).
        generation: how text is generated.
        relative: strengths are fractions of each token's own norm.
        batch_tokens: rows times columns of a pass at most; None: what memory holds.
        batch_rows: rows that generate together at most; None: what memory holds.
        share: whether to share prompts and to refill; False runs batches of equal length through the
            model's own `generate`, as is done for models that cannot be run in pieces.

    Attributes:
        sharing: what became of `share`: "prompts are shared", or why not.

    Raises:
        ValueError: batch_tokens or batch_rows below 1.
    """

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

    def run(self, works: Iterable[Work]) -> Iterator[list[Row]]:
        """The rows of each unit as it is finished, in an order that suits the batches.

        An error in a unit or metric becomes its rows' reason; only what concerns the whole run is raised.
        """
        with self.passes:
            for (layers, positions), group in by_place(works):
                yield from self._group(group, layers, positions)

    def _group(self, works: Iterable[Work], layers: tuple[int, ...], positions: str) -> Iterator[list[Row]]:
        for whole in windows(works, WINDOW):
            window = []
            for work in whole:
                if not work.needs_model:
                    yield self.from_text(work)
                elif (why := self.too_long(work)) is not None:
                    yield failed_rows(work, ValueError(why), self.generation)
                else:
                    window.append(work)
            if not window:
                continue
            slots = max(len(work.unit.program.slots) for work in window)
            window.sort(key=lambda work: (-len(work.unit.prompt.tokens), work.unit.prompt.id))
            steered = Steered(self.passes.model, self.bank, layers, positions, self.relative, slots)
            with steered.steering:
                yield from Window(self, steered, window).rows()

    def from_text(self, work: Work) -> list[Row]:
        """The rows of a unit whose text is all that its metrics want."""
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


def by_place(works: Iterable[Work]) -> Iterator[tuple[tuple[tuple[int, ...], str], Iterator[Work]]]:
    """`((layers, positions), works steered there)`, one after another; the works of one are to be taken first."""
    for at, group in groupby(_settled(works), key=lambda pair: pair[0]):
        yield at or ((), "all"), (work for _, work in group)


def _settled(works: Iterable[Work]) -> Iterator[tuple[Any, Work]]:
    """Works with where they are steered; an unsteered one goes along with whatever comes next to it."""
    waiting: list[Work] = []
    at = None
    for work in works:
        here = (work.unit.layers, work.unit.positions) if work.unit.layers else None
        if here is None and at is None and len(waiting) < WINDOW:
            waiting.append(work)
            continue
        at = here or at
        yield from ((at, one) for one in waiting)
        waiting.clear()
        yield at, work
    yield from ((at, one) for one in waiting)


def ready_metrics(metrics: Sequence[Any], bank: Bank, depth: int) -> tuple[Any, ...]:
    """Metrics that know all they need: readings take the sweep's bank and its layer at two thirds."""
    layer = layer_at_two_thirds(bank.layers, depth)
    return tuple(m.on(bank, layer) if isinstance(m, Readings) else m for m in metrics)
