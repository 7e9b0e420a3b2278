"""An engine process and its client, each of which vLLM lets outlive the other.

A client would wait for ever for an engine that is gone; an engine whose client was killed would hold its memory.
"""

from __future__ import annotations

import os
from functools import wraps
from multiprocessing import connection, current_process, parent_process
from threading import Thread
from typing import Any

from .settings import Settings


def patch() -> None:
    """Have the clients of engines with banks watch the engine's processes."""
    from vllm.v1.engine.core_client import SyncMPClient

    make = SyncMPClient.__init__

    @wraps(make)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        if Settings.of(self.vllm_config.additional_config) is not None:
            watch(self)

    SyncMPClient.__init__ = __init__  # type: ignore[method-assign]


def watch(client: Any) -> None:
    """End every wait of a client with vLLM's `EngineDeadError` when one of its engine's processes ends."""
    from vllm.v1.engine.exceptions import EngineDeadError

    manager = client.resources.engine_manager
    sentinels = [process.sentinel for process in getattr(manager, "processes", ())]
    if not sentinels:
        return
    outputs, calls = (
        client.outputs_queue,
        client.utility_results,
    )  # not the client, which may go before its process

    def wait() -> None:
        connection.wait(sentinels)
        outputs.put(EngineDeadError())
        for future in list(calls.values()):
            if not future.done():
                future.set_exception(EngineDeadError())

    Thread(target=wait, daemon=True, name="emosteer-watch").start()


def end_with_client() -> None:
    """End this process when the one that started it ends, if it is an engine's own and not its client's."""
    client = parent_process()
    if client is None or not current_process().name.startswith("EngineCore"):
        return
    sentinel = client.sentinel

    def wait() -> None:
        connection.wait([sentinel])
        os._exit(1)

    Thread(target=wait, daemon=True, name="emosteer-end").start()
