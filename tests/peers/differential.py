"""Comparing a library alone with the same library accelerated."""

from contextlib import contextmanager

import torch

import emosteer as es

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@contextmanager
def kernels_run():
    """Count the calls of the kernels that steer, at the module that everything goes through."""
    from emosteer import ops

    calls = []
    before = ops.steer_, ops.steer

    def counted(run):
        def call(*args, **kwargs):
            calls.append(run.__name__)
            return run(*args, **kwargs)

        return call

    ops.steer_, ops.steer = counted(before[0]), counted(before[1])
    try:
        yield calls
    finally:
        ops.steer_, ops.steer = before


def both(library, run):
    """What `run()` gives alone, and accelerated: the kernels must have run then, and only then."""
    with kernels_run() as calls:
        alone = run()
        assert not calls
        with es.accelerate(library):
            fast = run()
    assert calls, "the library's own code ran"
    return alone, fast


def assert_as_good(fast, alone, exact, unsteered=None):
    """Our error against float64 is at most 1.5 times the library's own in the same dtype."""
    fast, alone, exact = (t.double() for t in (fast, alone, exact))
    assert torch.isfinite(fast).all()
    ours = torch.linalg.vector_norm(fast - exact)
    theirs = torch.linalg.vector_norm(alone - exact)
    assert ours <= 1.5 * theirs + 1e-6 * torch.linalg.vector_norm(exact), (ours, theirs)
    if unsteered is not None:
        changed = torch.linalg.vector_norm(exact - unsteered.double())
        assert ours < 0.1 * changed, "steering changed nothing to speak of"


def cosine(a, b):
    a, b = (torch.as_tensor(t).double().flatten() for t in (a, b))
    return float(a @ b / (a.norm() * b.norm()))
