"""The runner: a stream of units in, finished results out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from emosteer.models.batching import windows

from ...metrics.row import Row
from ..places import WINDOW, by_place
from ..work import Work, failed_rows
from .steered import Steered
from .window import Window
from .workbench import Workbench


class Runner(Workbench):
    """One model that turns units into results.

    Units of different programs, prompts and seeds run in one batch, a table row each;
    a prompt is run once for all programs, as far as none of them acts on it: its tokens before the first
    steered one, and all blocks up to the first steered one. Sequences that end make room for others while
    the rest go on. Each unit's outcome is that of the unit alone, up to rounding.

    Args:
        model, tok: a causal language model and its tokenizer.
        bank: the directions that the units' programs name (`Plan.bank`).
        generation: how text is generated.
        relative: strengths are fractions of each token's own norm.
        batch_tokens: sequences times columns of a pass at most; None: what memory holds.
        batch_rows: sequences that generate together at most; None: what memory holds.
        share: whether to share prompts and to refill; False runs batches of equal length through the
            model's own `generate`, as is done for models that cannot be run in pieces.

    Attributes:
        sharing: what became of `share`: "prompts are shared", or why not.

    Raises:
        ValueError: batch_tokens or batch_rows below 1.
    """

    def run(self, works: Iterable[Work]) -> Iterator[list[Row]]:
        """The results of each unit as it is finished, in an order that suits the batches.

        An error in a unit or metric becomes its results' reason; only what concerns the whole run is raised.
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
