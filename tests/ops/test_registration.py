"""The operators of torch.ops.emosteer: schemas, fakes, aliasing, compilation and gradients."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from emosteer import ops
from emosteer.ops import Moments, SteerTable

from .cases import adding, rows, unit

OPCHECK = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def arguments(op, dtype=torch.float32):
    x, directions, table = rows(6, 20, dtype), unit(4, 20), adding(3, 4)
    token_row = torch.tensor([0, 1, -1, 2, 2, 0], dtype=torch.int32)
    steer = (x, directions, *table.columns(), token_row, 1.5)
    return {
        "project": (x, directions, rows(1, 20)[0], True),
        "steer_": steer,
        "steer": steer,
        "rms_norm": (x, torch.ones(20), 1e-6, 1.0),
        "steer_rms_norm_": (x, torch.ones(20), *steer[1:], rows(6, 20, dtype, seed=4), 1e-6, 0.0),
        "moments_update_": (
            *(
                Moments(3, 20).update(rows(4, 20)).state_dict()[n]
                for n in ("count", "sum", "shift", "started", "scatter")
            ),
            x,
            token_row,
            torch.rand(6),
        ),
    }[op]


@pytest.fixture
def poisoned():
    """Tracers must see the real torch.empty."""


OPS = ("project", "steer_", "steer", "rms_norm", "steer_rms_norm_", "moments_update_")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op, dtype):
    torch.library.opcheck(getattr(torch.ops.emosteer, op).default, arguments(op, dtype), test_utils=OPCHECK)


@pytest.mark.parametrize("op", ["project", "steer", "rms_norm"])
def test_opcheck_with_gradients(op):
    given = [
        a.clone().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
        for a in arguments(op)
    ]
    if op == "project":
        given[-1] = False  # cosines have no gradient, and say so
    torch.library.opcheck(getattr(torch.ops.emosteer, op).default, tuple(given), test_utils=OPCHECK)


def compiled(run):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(run, fullgraph=True, backend=counter), counter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", OPS)
def test_compile(op, dtype):
    """The public functions in one graph, with the values of the table read at each call."""
    directions, table, token_row = (
        unit(4, 20),
        adding(3, 4),
        torch.tensor([0, 1, -1, 2, 2, 0], dtype=torch.int32),
    )
    weight = rows(1, 20, seed=6)[0]

    def run(x, moments):
        if op == "project":
            return ops.project(x, directions, cosine=True)
        if op == "rms_norm":
            return ops.rms_norm(x, weight, weight_offset=1.0)
        if op == "steer":
            return ops.steer(x, directions, table, token_row, scale=2.0)
        if op == "steer_":
            return ops.steer_(x + 1, directions, table, token_row) * 2
        if op == "steer_rms_norm_":
            normed, stream = ops.steer_rms_norm_(x + 1, weight, directions, table, residual=x)
            return normed + stream
        ops.moments_update_(moments, x, token_row)
        return moments.sum + 0

    fast, counter = compiled(run)
    for strength in (0.5, -1.0, 2.0):
        table.strength.fill_(strength)
        x = rows(6, 20, dtype)
        torch.testing.assert_close(fast(x, Moments(3, 20)), run(x.clone(), Moments(3, 20)))
    assert counter.frame_count == 1, "a table's new values made it compile again"


def test_compile_with_inductor():
    directions, table = unit(4, 64), adding(2, 4)
    run = torch.compile(lambda x: ops.steer_(x * 2, directions, table).sum(-1), fullgraph=True)
    x = rows(4, 64)
    torch.testing.assert_close(run(x), ops.steer(x * 2, directions, table).sum(-1))


FORMS = {
    "add": dict(strength=0.4),
    "cap": dict(high=0.1),
    "hold": dict(low=0.2, high=0.2),
    "rotate": dict(rotate=0.3),
    "add and rotate": dict(strength=0.2, rotate=-0.2),
    "off": dict(strength=0.0),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("preserve", [0, 1, 2])
@pytest.mark.parametrize("relative", [0, 1])
def test_gradcheck(form, preserve, relative):
    directions = torch.nn.functional.normalize(unit(3, 7).double(), dim=1)
    x = rows(4, 7, seed=2).double().requires_grad_()
    idle = SteerTable.empty(2, 2)
    idle.direction[:, 0] = torch.tensor([0, 2])
    idle.preserve_norm.fill_(preserve)
    idle.relative.fill_(relative)
    for name, value in FORMS[form].items():
        getattr(idle, name)[:, 0] = value
    columns = [c.double() if c.is_floating_point() else c for c in idle.columns()]
    columns[1].requires_grad_()

    def run(x, strength):
        return torch.ops.emosteer.steer.default(x, directions, columns[0], strength, *columns[2:], None, 1.3)

    with ops.backend("reference"):
        idle_rows = form == "off"
        if idle_rows:  # at strength 0 the value is the input and the gradient is that of adding
            run(x, columns[1]).sum().backward()
            assert columns[1].grad[:, 0].abs().min() > 0
        else:
            assert torch.autograd.gradcheck(run, (x, columns[1]), atol=1e-5)


def test_gradients_of_project_and_norm():
    directions = torch.nn.functional.normalize(unit(3, 7).double(), dim=1).requires_grad_()
    x, center = rows(4, 7).double().requires_grad_(), rows(1, 7)[0].double().requires_grad_()
    weight = rows(1, 7, seed=8)[0].double().requires_grad_()
    with ops.backend("reference"):
        assert torch.autograd.gradcheck(lambda x, w: ops.rms_norm(x, w, weight_offset=1.0), (x, weight))
        assert torch.autograd.gradcheck(
            lambda x, c: torch.ops.emosteer.project.default(x, directions.detach(), c, False), (x, center)
        )
    with pytest.raises(RuntimeError, match="has no gradient"):
        ops.project(rows(2, 7).requires_grad_(), unit(3, 7), cosine=True).sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_vector_is_trained_through_compiled_steering(dtype):
    directions, table = unit(2, 16), adding(2, 2)
    table.strength.requires_grad_()
    run = torch.compile(
        lambda x: ops.steer(x, directions, table).float().square().sum(), fullgraph=True, backend="aot_eager"
    )
    x = rows(4, 16, dtype).requires_grad_()
    run(x).backward()
    eager_x = x.detach().clone().requires_grad_()
    by_compiled, table.strength.grad = table.strength.grad.clone(), None
    ops.steer(eager_x, directions, table).float().square().sum().backward()
    torch.testing.assert_close(x.grad, eager_x.grad)
    torch.testing.assert_close(by_compiled, table.strength.grad)


def test_inference_mode_and_autocast():
    """Tensors without version counters; and autocast changes no dtype of ours."""
    with torch.inference_mode():
        x, directions, table = rows(2, 16), unit(2, 16), adding(2, 2)
        for _ in range(3):
            ops.steer_(x, directions, table)
    want = rows(2, 16)
    for _ in range(3):
        ops.steer_(want, unit(2, 16), adding(2, 2))
    assert torch.equal(x, want)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ops.project(rows(2, 16), unit(2, 16)).dtype == torch.float32
        assert ops.steer(rows(2, 16), unit(2, 16), adding(2, 2)).dtype == torch.float32
