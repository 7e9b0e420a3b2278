"""Threads are torch's, the interpreter is released for large work, and calls do not disturb each other."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from emosteer import ops

from .cases import adding, rows, unit


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_torch_decides_how_many(threads):
    from emosteer import _cpu

    for n in (1, 3, 2):
        threads(n)
        assert _cpu.threads() == n


def test_any_number_gives_the_same_bits(threads):
    x, directions, table = rows(301, 577), unit(7, 577), adding(301, 7, preserve=2)
    weight = torch.ones(577)
    found = []
    for n in (1, 2, 5):
        threads(n)
        found.append(
            (ops.steer(x, directions, table), ops.rms_norm(x, weight), ops.project(x[:9], directions))
        )
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


def test_concurrent_calls():
    directions = unit(7, 576)

    def work(seed):
        x, table = rows(200, 576, seed=seed), adding(200, 7, strength=seed)
        for _ in range(20):
            out = ops.steer(x, directions, table)
        return out

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(8)))
    for seed, out in enumerate(found):
        assert torch.equal(out, work(seed))


def test_the_interpreter_runs_meanwhile():
    """While one thread steers a large tensor, another counts."""
    x, directions, table = torch.randn(20000, 2048), unit(3, 2048), adding(1, 3, preserve=2)
    started, ticks, stop = threading.Event(), [0], threading.Event()

    def count():
        started.set()
        while not stop.wait(0.0005):
            ticks[0] += 1

    counter = threading.Thread(target=count)
    counter.start()
    started.wait()
    before = ticks[0]
    for _ in range(5):
        ops.steer_(x, directions, table)
    stop.set()
    counter.join()
    assert ticks[0] > before + 2
