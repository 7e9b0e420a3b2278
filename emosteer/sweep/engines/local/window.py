"""A window of units at one place: packed, run, grown, looked back at."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from ...metrics.base import Seen
from ...metrics.row import Row
from ..work import Work, failed_rows, rows_of
from . import plain
from .memory import MOST_ROWS, out_of_memory
from .pool import Growing, Pool
from .prefill import Ready, prefill
from .prefix import Prefix, prefixes
from .scoring import Written, look_back, score_continuations
from .steered import Steered
from .workbench import Workbench

# Prefixes that are kept for units to come, in tokens.
PREFIX_TOKENS = 65536


class Window:
    """The units of one window at one place."""

    def __init__(self, bench: Workbench, steered: Steered, works: list[Work]) -> None:
        self.bench, self.steered, self.todo = bench, steered, works
        self.todo.reverse()  # taken from the end
        self.passes, self.budget, self.generation = bench.passes, bench.budget, bench.generation
        self.known: OrderedDict[str, Prefix] = OrderedDict()
        self.pool: Pool | None = None
        self.growing: dict[str, Seen] = {}  # unit id → what was seen of it before its text grew
        self.written: list[tuple[Work, Written]] = []

    def rows(self) -> Iterator[list[Row]]:
        if not self.bench.shares(self.steered):
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
        """Whether the next units should be run now, before the sequences that grow go on."""
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
        """Prompts, continuations, and into the pool; the results of what is finished by that."""
        scored = [work for work in batch if work.continuations]
        grown = [work for work in batch if work.generates]
        self._share(batch)
        longer = any(len(self.bench.ids(c)) > 1 for work in scored for c in work.continuations)
        run = [work for work in batch if work.continuations or work.generates]
        keep = bool(grown) or longer
        ready = prefill(self.passes, self.steered, run, self.known, keep=keep) if run else []
        seen = {id(work): Seen(work.unit) for work in batch}
        some = [one for one in ready if one.work.continuations]
        if some:
            ids = {c: self.bench.ids(c) for one in some for c in one.work.continuations}
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
        """One more token for every sequence of the pool; where memory runs out, half of them begin anew."""
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
        """A unit whose text is there: its results, or a place in the queue to be looked back at."""
        seen.tokens = tokens
        seen.text = self.bench.tok.decode(list(tokens), skip_special_tokens=True)
        if work.looks_back and tokens:
            self.written.append((work, Written(seen, prefix, self.bench.readings(work))))
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
        ids = {c: self.bench.ids(c) for work in batch for c in work.continuations}
        for one, found in zip(seen, plain.score(model, steered, batch, ids, self.budget)):
            one.continuations = found
        grown = [k for k, work in enumerate(batch) if work.generates]
        texts = plain.generate(model, steered, [batch[k] for k in grown], self.generation, self.budget)
        tokens = {**{k: work.tokens for k, work in enumerate(batch)}, **dict(zip(grown, texts))}
        for k, one in enumerate(seen):
            if tokens[k] is not None:
                one.tokens = tokens[k]
                one.text = self.bench.tok.decode(list(one.tokens or ()), skip_special_tokens=True)
        back = [
            (one, self.bench.readings(work))
            for one, work in zip(seen, batch)
            if work.looks_back and one.tokens
        ]
        plain.look_back(model, steered, back, self.budget)
        return [rows_of(work, one, self.generation) for work, one in zip(batch, seen)]
