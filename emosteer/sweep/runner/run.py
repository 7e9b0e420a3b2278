"""The runner: a stream of units in, finished rows out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from emosteer.bank import Bank
from emosteer.models.batching import windows
from emosteer.models.capture import layer_at_two_thirds

from ..generation import Generation
from ..metrics.base import Seen
from ..metrics.reading import Readings
from ..row import Row
from . import plain
from .memory import MOST_ROWS, Budget, out_of_memory
from .passes import Passes
from .pool import Growing, Pool
from .prefill import Ready, prefill
from .prefix import Prefix, prefixes
from .proof import why_not
from .scoring import Written, look_back, score_continuations
from .steered import Steered
from .work import Work, failed_rows, rows_of

# Units that are looked at together, to sort them by length.
WINDOW = 4096

# Prefixes that are kept for units to come, in tokens.
PREFIX_TOKENS = 65536


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

        def place(work: Work) -> tuple[tuple[int, ...], str] | None:
            return (work.unit.layers, work.unit.positions) if work.unit.layers else None

        with self.passes:
            for at, group in groupby(_settled(works, place), key=lambda pair: pair[0]):
                layers, positions = at or ((), "all")
                yield from self._group((work for _, work in group), layers, positions)

    def _group(self, works: Iterable[Work], layers: tuple[int, ...], positions: str) -> Iterator[list[Row]]:
        for whole in windows(works, WINDOW):
            yield from (self._from_text(work) for work in whole if not work.needs_model)
            window = [work for work in whole if work.needs_model]
            if not window:
                continue
            slots = max(len(work.unit.program.slots) for work in window)
            window.sort(key=lambda work: (-len(work.unit.prompt.tokens), work.unit.prompt.id))
            steered = Steered(self.passes.model, self.bank, layers, positions, self.relative, slots)
            with steered.steering:
                yield from _Window(self, steered, window).rows()

    def _from_text(self, work: Work) -> list[Row]:
        """The rows of a unit whose text is all that its metrics want."""
        text = self.tok.decode(list(work.tokens or ()), skip_special_tokens=True)
        return rows_of(work, Seen(work.unit, text=text, tokens=work.tokens), self.generation)

    def shares(self, steered: Steered) -> bool:
        """Whether the model can be run in pieces; tried once."""
        if self.sharing == "not tried yet":
            why = why_not(self.passes, steered, self.budget)
            self.sharing = "prompts are shared" if why is None else f"prompts are not shared: {why}"
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


def _settled(works: Iterable[Work], place: Callable[[Work], Any]) -> Iterator[tuple[Any, Work]]:
    """Works with where they are steered; an unsteered one goes along with whatever comes next to it."""
    waiting: list[Work] = []
    at = None
    for work in works:
        here = place(work)
        if here is None and at is None and len(waiting) < WINDOW:
            waiting.append(work)
            continue
        at = here or at
        yield from ((at, one) for one in waiting)
        waiting.clear()
        yield at, work
    yield from ((at, one) for one in waiting)


class _Window:
    """The units of one window at one place."""

    def __init__(self, runner: Runner, steered: Steered, works: list[Work]) -> None:
        self.runner, self.steered, self.todo = runner, steered, works
        self.todo.reverse()  # taken from the end
        self.passes, self.budget, self.generation = runner.passes, runner.budget, runner.generation
        self.known: OrderedDict[str, Prefix] = OrderedDict()
        self.pool: Pool | None = None
        self.growing: dict[str, Seen] = {}  # unit id → what was seen of it before its text grew
        self.written: list[tuple[Work, Written]] = []

    def rows(self) -> Iterator[list[Row]]:
        if not self.runner.shares(self.steered):
            yield from self._plainly()
            return
        while self.todo or self.pool:
            if self._room():
                batch = self._take()
                yield from self._attempt(batch, self._run)
            elif self.pool:
                yield from self._grow()
            if len(self.written) >= self.budget.rows:
                yield from self._look_back()
        yield from self._look_back()

    # ---- packing ------------------------------------------------------------------------------------

    def _room(self) -> bool:
        """Whether the next units should be run now, before the rows that grow go on."""
        if not self.todo:
            return False
        if not self.pool or not self.todo[-1].generates:
            return True
        fits = self._width(self.todo[-1]) <= self.pool.width
        return fits and self.pool.free >= max(self.pool.capacity // 8, 1)

    def _width(self, work: Work) -> int:
        return len(work.unit.prompt.tokens) + self.generation.max_new_tokens

    def _take(self) -> list[Work]:
        """The next units: as many as a pass and the pool take."""
        batch: list[Work] = []
        grow, columns = 0, 1
        free = self.pool.free if self.pool else self.budget.rows
        while self.todo and len(batch) < MOST_ROWS:
            work = self.todo[-1]
            length = len(work.unit.prompt.tokens)
            columns = max(columns, length - self.steered.first_token(work.unit))
            if batch and len(batch) + 1 > self.budget.rows_of_width(columns):
                break
            if work.generates:
                if grow == free or (self.pool and self._width(work) > self.pool.width):
                    break
                grow += 1
            batch.append(self.todo.pop())
        return batch

    # ---- running ------------------------------------------------------------------------------------

    def _attempt(
        self, batch: list[Work], run: Callable[[list[Work]], list[list[Row]]]
    ) -> Iterator[list[Row]]:
        """Run a batch; smaller ones where memory ran out, one by one to find the unit that is at fault."""
        try:
            yield from run(batch)
            return
        except Exception as error:
            trouble: Exception = error
            trouble.__traceback__ = None  # frees what the frames held
        if out_of_memory(trouble):
            self.budget.halve()
            self.known.clear()
        if len(batch) == 1:
            yield failed_rows(batch[0], trouble, self.generation)
            return
        middle = len(batch) // 2
        yield from self._attempt(batch[:middle], run)
        yield from self._attempt(batch[middle:], run)

    def _run(self, batch: list[Work]) -> list[list[Row]]:
        """Prompts, continuations, and into the pool; the rows of what is finished by that."""
        scored = [work for work in batch if work.continuations]
        grown = [work for work in batch if work.generates]
        self._share(batch)
        longer = any(len(self.runner.ids(c)) > 1 for work in scored for c in work.continuations)
        run = [work for work in batch if work.continuations or work.generates]
        keep = bool(grown) or longer
        ready = prefill(self.passes, self.steered, run, self.known, keep=keep) if run else []
        seen = {id(work): Seen(work.unit) for work in batch}
        some = [one for one in ready if one.work.continuations]
        if some:
            ids = {c: self.runner.ids(c) for one in some for c in one.work.continuations}
            for one, found in zip(
                some, score_continuations(self.passes, self.steered, some, ids, self.budget)
            ):
                seen[id(one.work)].continuations = found
        self.growing.update({work.unit.id: seen[id(work)] for work in grown})
        finished = self._admit([one for one in ready if one.work.generates])
        for work in batch:
            if work.tokens is not None:
                prefix = self.known[work.unit.prompt.id]
                finished += self._finish(work, seen[id(work)], work.tokens, prefix)
            elif not work.generates:
                finished.append(rows_of(work, seen[id(work)], self.generation))
        return finished

    def _share(self, batch: Sequence[Work]) -> None:
        """Make sure that the prompts' prefixes are there."""
        whole = {
            work.unit.prompt.id
            for work in batch
            if work.looks_back or self.steered.first_token(work.unit) > 0
        }
        prompts = {work.unit.prompt.id: work.unit.prompt for work in batch}
        for wanted in (True, False):
            missing = [
                prompt
                for id, prompt in prompts.items()
                if (id in whole) is wanted and (id not in self.known or (wanted and not self.known[id].whole))
            ]
            if missing:
                found = prefixes(self.passes, self.steered, missing, self.budget, whole=wanted)
                self.known.update(zip((prompt.id for prompt in missing), found))
        for id in prompts:
            self.known.move_to_end(id)
        tokens = sum(len(prefix.prompt.tokens) for prefix in self.known.values())
        while tokens > PREFIX_TOKENS and len(self.known) > len(prompts):
            tokens -= len(self.known.popitem(last=False)[1].prompt.tokens)

    def _admit(self, ready: list[Ready]) -> list[list[Row]]:
        if not ready:
            return []
        if not self.pool:
            width = max(self._width(one.work) for one in ready)
            if self.pool is None or self.pool.width < width or self.pool.capacity < len(ready):
                columns = sum(
                    part.shape[0] * part.shape[-1] * part.element_size()
                    for stripe in ready[0].stripes
                    for part in stripe.pieces[0]
                )
                capacity = max(self.budget.cached_rows(width + width // 4 + 32, columns), len(ready))
                self.pool = Pool(self.passes, self.steered, self.generation, capacity, width)
        # a batch that was split may find less room than it was made for
        now: list[Ready] = []
        later: list[Ready] = []
        for one in ready:
            fits = len(now) < self.pool.free and self._width(one.work) <= self.pool.width
            (now if fits else later).append(one)
        try:
            ended = list(self.pool.admit(now))
        except BaseException:
            self.pool.withdraw(now)
            if not self.pool:
                self.pool = None  # its buffers may be what did not fit
            raise
        self.todo += [one.work for one in later]
        return [rows for row in ended for rows in self._done(row)]

    def _grow(self) -> Iterator[list[Row]]:
        """One more token for every row of the pool; where memory runs out, half of them begin anew."""
        assert self.pool is not None
        try:
            for row in list(self.pool.step()):
                yield from self._done(row)
            return
        except Exception as error:
            trouble: Exception = error
            trouble.__traceback__ = None
        if out_of_memory(trouble) and len(self.pool) > 1:
            self.budget.halve()
            self.todo += self.pool.give_back(len(self.pool) // 2)
            self.pool.capacity = max(len(self.pool), 1)
            return
        works = self.pool.give_back(len(self.pool))
        self.pool = None
        if len(works) == 1:
            yield failed_rows(works[0], trouble, self.generation)
        else:  # whose fault it is shows when each grows alone
            for work in works:
                yield from self._alone(work)

    def _alone(self, work: Work) -> Iterator[list[Row]]:
        yield from self._attempt([work], self._run)
        while self.pool:
            yield from self._grow()

    def _done(self, row: Growing) -> list[list[Row]]:
        seen = self.growing.pop(row.work.unit.id)
        return self._finish(row.work, seen, tuple(row.tokens), row.ready.prefix)

    def _finish(self, work: Work, seen: Seen, tokens: tuple[int, ...], prefix: Prefix) -> list[list[Row]]:
        """A unit whose text is there: its rows, or a place in the queue to be looked back at."""
        seen.tokens = tokens
        seen.text = self.runner.tok.decode(list(tokens), skip_special_tokens=True)
        if work.looks_back and tokens:
            self.written.append((work, Written(seen, prefix, self.runner.readings(work))))
            return []
        return [rows_of(work, seen, self.generation)]

    def _look_back(self) -> Iterator[list[Row]]:
        queue, self.written = self.written, []
        if not queue:
            return
        by_unit = {work.unit.id: written for work, written in queue}

        def run(batch: list[Work]) -> list[list[Row]]:
            look_back(self.passes, self.steered, [by_unit[work.unit.id] for work in batch], self.budget)
            return [rows_of(work, by_unit[work.unit.id].seen, self.generation) for work in batch]

        yield from self._attempt([work for work, _ in queue], run)

    # ---- without sharing ----------------------------------------------------------------------------

    def _plainly(self) -> Iterator[list[Row]]:
        works = self.todo[::-1]
        self.todo = []
        for start in range(0, len(works), 4 * self.budget.rows):
            yield from self._attempt(works[start : start + 4 * self.budget.rows], self._run_plainly)

    def _run_plainly(self, batch: list[Work]) -> list[list[Row]]:
        model, steered = self.passes.model, self.steered
        seen = [Seen(work.unit) for work in batch]
        ids = {c: self.runner.ids(c) for work in batch for c in work.continuations}
        for one, found in zip(seen, plain.score(model, steered, batch, ids, self.budget)):
            one.continuations = found
        grown = [k for k, work in enumerate(batch) if work.generates]
        texts = plain.generate(model, steered, [batch[k] for k in grown], self.generation, self.budget)
        tokens = {**{k: work.tokens for k, work in enumerate(batch)}, **dict(zip(grown, texts))}
        for k, one in enumerate(seen):
            if tokens[k] is not None:
                one.tokens = tokens[k]
                one.text = self.runner.tok.decode(list(one.tokens or ()), skip_special_tokens=True)
        back = [
            (one, self.runner.readings(work))
            for one, work in zip(seen, batch)
            if work.looks_back and one.tokens
        ]
        plain.look_back(model, steered, back, self.budget)
        return [rows_of(work, one, self.generation) for work, one in zip(batch, seen)]


def ready_metrics(metrics: Sequence[Any], bank: Bank, depth: int) -> tuple[Any, ...]:
    """Metrics that know all they need: readings take the sweep's bank and its layer at two thirds."""
    layer = layer_at_two_thirds(bank.layers, depth)
    return tuple(m.on(bank, layer) if isinstance(m, Readings) else m for m in metrics)
