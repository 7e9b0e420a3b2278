"""saklas' pushes and ablations alone against accelerated, by the manager that its sessions steer with."""

import copy
from contextlib import contextmanager

import pytest
import torch

import emosteer as es

from .differential import DTYPES, assert_as_good, both, kernels_run

hooks = pytest.importorskip("saklas.core.hooks")
from saklas.core.manifold import LayerSubspace, SynthesizedSubspace  # noqa: E402
from saklas.core.triggers import Trigger  # noqa: E402

DIM, LAYERS = 32, (0, 2)
IDS = torch.arange(24).view(3, 8) + 40

# Coefficients of ablation and targets of the push, one an axis.
KINDS = {
    "ablate": ([1.0], [0.0]),
    "ablate two": ([1.0, 1.0], [0.0, 0.0]),
    "push and ablate": ([0.0, 1.0], [0.05, 0.0]),
    "push two, ablate two": ([0.0, 1.0, 0.0, 1.0], [0.05, 0.0, -0.03, 0.02]),
}


def subspaces(kappa, target):
    generator = torch.Generator().manual_seed(0)
    layers = {}
    for layer in LAYERS:
        basis = torch.linalg.qr(torch.randn(DIM, len(kappa), generator=generator)).Q.T.contiguous()
        layers[layer] = LayerSubspace.affine(torch.randn(DIM, generator=generator), basis)
    return SynthesizedSubspace(
        layers,
        {layer: torch.tensor(target) for layer in LAYERS},
        {layer: 1.0 + layer for layer in LAYERS},
        {layer: torch.tensor(kappa) for layer in LAYERS},
    )


@contextmanager
def steered(model, kappa, target, trigger=Trigger.BOTH):
    manager = hooks.SteeringManager()
    manager.add_subspace("merged", subspaces(kappa, target), trigger=trigger)
    manager.apply_to_model(model.model.layers, torch.device("cpu"), model.dtype)
    try:
        yield manager
    finally:
        manager.clear_all()


def logits(model, *kind, **kwargs):
    with torch.no_grad(), steered(model, *kind, **kwargs):
        return model(IDS).logits


def patched(model):
    return sum("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_forward(tiny_llama, dtype, kind):
    model = tiny_llama[0]
    exact = logits(copy.deepcopy(model).double(), *KINDS[kind])
    model = model.to(dtype)
    with torch.no_grad():
        unsteered = model(IDS).logits
    alone, fast = both("saklas", lambda: logits(model, *KINDS[kind]))
    assert_as_good(fast, alone, exact, unsteered if dtype == torch.float32 else None)


@pytest.mark.parametrize("kind", KINDS)
def test_generate(tiny_llama, kind):
    model = tiny_llama[0]

    def run():
        with steered(model, *KINDS[kind]):
            return model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=8, do_sample=False)

    alone, fast = both("saklas", run)
    assert alone.tolist() == fast.tolist()


def test_hidden_states(tiny_llama):
    model = tiny_llama[0]

    def run():
        with torch.no_grad(), steered(model, *KINDS["push and ablate"]):
            return model(IDS, output_hidden_states=True).hidden_states

    alone, fast = both("saklas", run)
    for theirs, ours in zip(alone, fast, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_push_alone_is_the_librarys_addition(tiny_llama):
    model = tiny_llama[0]
    alone = logits(model, [0.0], [0.05])
    with es.accelerate("saklas"), kernels_run() as calls:
        torch.testing.assert_close(logits(model, [0.0], [0.05]), alone, rtol=1e-4, atol=1e-4)
    assert not calls


@pytest.mark.parametrize(
    ("kind", "trigger", "said"),
    [
        (([0.4], [0.0]), Trigger.BOTH, "ablation is partial"),
        (([1.0], [0.0]), Trigger.PROMPT_ONLY, "a trigger"),
    ],
    ids=["partial", "trigger"],
)
def test_what_the_kernels_have_not_falls_back_and_says_so(tiny_llama, kind, trigger, said):
    model = tiny_llama[0]
    alone = logits(model, *kind, trigger=trigger)
    with es.accelerate("saklas"), kernels_run() as calls, pytest.warns(UserWarning, match=said):
        torch.testing.assert_close(logits(model, *kind, trigger=trigger), alone, rtol=1e-4, atol=1e-4)
    assert not calls


def test_gradients(tiny_llama):
    model = tiny_llama[0]

    def run():
        model.zero_grad()
        with steered(model, *KINDS["push and ablate"]):
            model(IDS).logits.square().mean().backward()
        return model.model.embed_tokens.weight.grad.clone()

    alone = run()
    with es.accelerate("saklas"):
        torch.testing.assert_close(run(), alone)


def test_steered_anew_under_way(tiny_llama):
    model = tiny_llama[0]
    first, second = KINDS["ablate"], KINDS["push two, ablate two"]
    alone = logits(model, *second)
    with es.accelerate("saklas"), torch.no_grad(), steered(model, *first) as manager:
        model(IDS)
        manager.add_subspace("merged", subspaces(*second))
        manager.apply_to_model(model.model.layers, torch.device("cpu"), model.dtype)
        torch.testing.assert_close(model(IDS).logits, alone, rtol=1e-4, atol=1e-4)
        assert patched(model)
        manager.clear_all()
        assert not patched(model)


def test_undone(tiny_llama):
    model = tiny_llama[0]
    places = [(hooks.SteeringHook, name) for name in ("hook_fn", "recompose")]
    places += [
        (hooks.SteeringManager, name) for name in ("apply_to_model", "clear_all", "detach_transient_hooks")
    ]
    before = [vars(owner)[name] for owner, name in places]
    alone = logits(model, *KINDS["push and ablate"])
    handle = es.accelerate("saklas")
    assert all(vars(owner)[name] is not was for (owner, name), was in zip(places, before))
    with torch.no_grad(), steered(model, *KINDS["push and ablate"]):
        model(IDS)
        handle.undo()
        assert not patched(model)
        assert torch.equal(model(IDS).logits, alone)
    assert all(vars(owner)[name] is was for (owner, name), was in zip(places, before))
    assert torch.equal(logits(model, *KINDS["push and ablate"]), alone)


@pytest.mark.model
def test_smollm2(smollm2):
    model, tokenizer = smollm2
    given = tokenizer("The weather this morning", return_tensors="pt")
    basis = torch.eye(model.config.hidden_size)[[3, 40]]
    layers = range(8, 22)
    merged = SynthesizedSubspace(
        {layer: LayerSubspace.affine(torch.zeros(basis.shape[1]), basis) for layer in layers},
        dict.fromkeys(layers, torch.tensor([0.1, 0.0])),
        dict.fromkeys(layers, 1.0),
        dict.fromkeys(layers, torch.tensor([0.0, 1.0])),
    )

    def run():
        manager = hooks.SteeringManager()
        manager.add_subspace("merged", merged)
        manager.apply_to_model(model.model.layers, model.device, model.dtype)
        try:
            return model.generate(**given, max_new_tokens=16, do_sample=False)
        finally:
            manager.clear_all()

    unsteered = model.generate(**given, max_new_tokens=16, do_sample=False)
    alone, fast = both("saklas", run)
    assert alone.tolist() == fast.tolist() != unsteered.tolist()
