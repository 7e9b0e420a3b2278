"""Requests that come at the same time run in one batch."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import anyio
from anyio.lowlevel import RunVar

from .requests import Request

# Seconds without a new request, after which a batch that is not full goes.
QUIET = 0.05


class Batches:
    """Whoever asks while nothing runs has everything answered that waits, the others wait for it.

    So while one batch runs the next one gathers, and there is no thread to start or stop.

    Args:
        run: answers some requests; its time is that of a thread.
        size: requests in a batch at most.
    """

    def __init__(self, run: Callable[[list[Request]], None], size: int) -> None:
        self._run, self._size = run, size
        self._waiting: deque[Request] = deque()
        self._held = threading.Lock()  # of the deque
        self._turn: RunVar[anyio.Lock] = RunVar("emosteer_turn")  # one for each event loop
        self._alone = threading.Lock()  # and one of them at a time

    async def answer(self, request: Request) -> None:
        """Have a request answered.

        Raises:
            Exception: what its batch ended with.
        """
        self._waiting.append(request)
        try:
            async with self._lock():
                while not request.done:
                    await self._gather()
                    await anyio.to_thread.run_sync(self._serve)
        finally:
            with self._held:
                if request in self._waiting:  # cancelled before its batch began
                    self._waiting.remove(request)
        if request.error is not None:
            raise request.error

    def _lock(self) -> anyio.Lock:
        try:
            return self._turn.get()
        except LookupError:
            lock = anyio.Lock()
            self._turn.set(lock)
            return lock

    async def _gather(self) -> None:
        before = 0
        while before < len(self._waiting) < self._size:
            before = len(self._waiting)
            await anyio.sleep(QUIET)

    def _serve(self) -> None:
        with self._alone:
            with self._held:
                some = [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]
            try:
                if some:
                    self._run(some)
            except Exception as error:
                for request in some:
                    if not request.done:
                        request.error = error
