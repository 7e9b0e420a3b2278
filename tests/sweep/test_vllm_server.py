"""vLLM's client without vLLM: it knows of an engine process that has ended, whoever has seen it first."""

import os
import signal
import time
from multiprocessing import get_context
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from emosteer.sweep.engines.vllm.server import Ended, Server


@pytest.fixture
def server():
    """A client of one process, which sleeps."""
    process = get_context("spawn").Process(target=time.sleep, args=(600,), daemon=True)
    process.start()
    made = object.__new__(Server)
    resources = SimpleNamespace(engine_dead=False, engine_manager=SimpleNamespace(processes=[process]))
    made.engine = Mock(engine_core=SimpleNamespace(resources=resources))
    made._vllm = Mock()
    yield made
    process.kill()


def test_an_end_that_another_thread_is_about_to_note(server):
    """It has taken the exit status, without which `Process` calls the process alive."""
    (process,) = server.processes
    server.ask("one", [1, 2], max_tokens=1)
    os.kill(process.pid, signal.SIGKILL)
    os.waitpid(process.pid, 0)
    assert process.is_alive()
    with pytest.raises(Ended, match="ended amid the run"):
        server.ask("more", [1, 2], max_tokens=1)
    with pytest.raises(Ended, match="ended amid the run"):
        server.abort(["one"])
    assert server.engine.add_request.call_count == 1


def test_an_end_that_is_noted(server):
    server.engine.engine_core.resources.engine_dead = True
    with pytest.raises(Ended, match="ended amid the run"):
        server.ask("one", [1, 2], max_tokens=1)


def test_an_engine_within_this_process(server):
    server.engine.engine_core = object()
    server.ask("one", [1, 2], max_tokens=1)
    server.engine.add_request.assert_called_once()
