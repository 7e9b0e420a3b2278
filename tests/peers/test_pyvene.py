"""pyvene's constant additions and subtractions alone against accelerated."""

import copy

import pytest
import torch

import emosteer as es

from .differential import DTYPES, assert_as_good, both, kernels_run

pyvene = pytest.importorskip("pyvene")
from pyvene import (  # noqa: E402
    AdditionIntervention,
    IntervenableConfig,
    IntervenableModel,
    RepresentationConfig,
    SubtractionIntervention,
    VanillaIntervention,
)

KINDS = {"add": AdditionIntervention, "subtract": SubtractionIntervention}
SOURCE = torch.randn(32, generator=torch.Generator().manual_seed(0))


def intervenable(model, kind, layers=(1, 2), component="block_output", source=SOURCE, **kwargs):
    dtype = next(model.parameters()).dtype
    config = IntervenableConfig(
        [
            RepresentationConfig(
                layer,
                component,
                "pos",
                1,
                intervention=kind(source_representation=source.to(dtype).clone(), embed_dim=32, **kwargs),
            )
            for layer in layers
        ]
    )
    return IntervenableModel(config, copy.deepcopy(model))


def logits(model, given, locations=None, **kwargs):
    with torch.no_grad():
        return model({"input_ids": given}, unit_locations=locations, **kwargs)[1].logits


IDS = torch.arange(24).view(3, 8) + 40


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "locations",
    [None, {"base": 3}, {"base": [1, 2, 5]}, {"sources->base": (None, [[[1, 2], [3, 3], [0, 7]]] * 2)}],
    ids=["all", "one", "listed", "by row"],
)
def test_forward(tiny_llama, dtype, kind, locations):
    model = tiny_llama[0].to(dtype)
    exact = logits(intervenable(model.double(), KINDS[kind]), IDS, locations)
    model = model.to(dtype)
    alone, fast = both("pyvene", lambda: logits(intervenable(model, KINDS[kind]), IDS, locations))
    assert_as_good(fast, alone, exact)


@pytest.mark.parametrize("component", ["mlp_output", "attention_output", "model.layers[1].output"])
def test_other_outputs(tiny_llama, component):
    def run():
        return logits(
            intervenable(tiny_llama[0], AdditionIntervention, (1,), component), IDS, {"base": [0, 4]}
        )

    alone, fast = both("pyvene", run)
    torch.testing.assert_close(fast, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("on_prompt", [False, True])
@pytest.mark.parametrize("locations", [None, {"base": 0}], ids=["all", "first"])
def test_generate(tiny_llama, on_prompt, locations):
    model = intervenable(tiny_llama[0], AdditionIntervention)
    given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    asked = {"unit_locations": locations, "max_new_tokens": 8, "do_sample": False}

    def run():
        return model.generate(copy.deepcopy(given), intervene_on_prompt=on_prompt, **asked)[1]

    alone, fast = both("pyvene", run)
    assert alone.tolist() == fast.tolist()


def test_several_returned_sequences(tiny_llama):
    """The library alone indexes a batch of six by positions for three."""
    model = intervenable(tiny_llama[0], AdditionIntervention)
    given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    asked = {
        "unit_locations": {"sources->base": (None, [[[1], [2], [3]]] * 2)},
        "intervene_on_prompt": True,
        "max_new_tokens": 6,
    }

    def run(**kwargs):
        return model.generate(copy.deepcopy(given), **asked, **kwargs)[1]

    grown = {"num_beams": 2, "num_return_sequences": 2}
    with pytest.raises((RuntimeError, IndexError)):
        run(**grown)
    with es.accelerate("pyvene"):
        best = run(**grown)
        single = [
            intervenable(tiny_llama[0], AdditionIntervention).generate(
                {key: v[row : row + 1] for key, v in given.items()},
                **{**asked, "unit_locations": {"base": row + 1}},
                **grown,
            )[1]
            for row in range(3)
        ]
    assert best.tolist() == torch.cat(single).tolist()


def test_gradients(tiny_llama):
    def run():
        model = intervenable(tiny_llama[0], AdditionIntervention)
        model.enable_model_gradients()
        model({"input_ids": IDS}, unit_locations={"base": [1, 2]})[1].logits.square().mean().backward()
        return model.model.model.embed_tokens.weight.grad

    alone, fast = both("pyvene", run)
    torch.testing.assert_close(fast, alone, rtol=1e-3, atol=1e-5)


def test_a_part_of_the_width_falls_back_and_says_so(tiny_llama):
    def run():
        model = intervenable(tiny_llama[0], AdditionIntervention)
        for intervention in model.interventions.values():
            intervention.set_interchange_dim(16)
        return logits(model, IDS, {"base": 2})

    alone = run()
    with (
        es.accelerate("pyvene"),
        kernels_run() as calls,
        pytest.warns(UserWarning, match="part of the width"),
    ):
        assert torch.equal(run(), alone)
    assert not calls


def test_interchange_is_the_librarys(tiny_llama):
    def run():
        return logits(intervenable(tiny_llama[0], VanillaIntervention), IDS, {"base": 2})

    alone = run()
    with es.accelerate("pyvene"), kernels_run() as calls:
        assert torch.equal(run(), alone)
    assert not calls


def test_a_position_that_is_not_there(tiny_llama):
    with es.accelerate("pyvene"), pytest.raises(IndexError, match="8 tokens"):
        logits(intervenable(tiny_llama[0], AdditionIntervention), IDS, {"base": 30})


def test_a_changed_source_and_changed_positions_are_seen(tiny_llama):
    model = intervenable(tiny_llama[0], AdditionIntervention)
    other = intervenable(tiny_llama[0], AdditionIntervention, source=-SOURCE)
    place = [[[1], [2], [3]]] * 2
    moved = [[[4], [2], [0]]] * 2
    expected = logits(other, IDS, {"sources->base": (None, moved)})
    with es.accelerate("pyvene"):
        logits(model, IDS, {"sources->base": (None, place)})
        for intervention in model.interventions.values():
            intervention.source_representation.mul_(-1)
        place[0][0][0], place[0][2][0] = 4, 0
        fast = logits(model, IDS, {"sources->base": (None, place)})
    torch.testing.assert_close(fast, expected, rtol=1e-4, atol=1e-4)


def test_undone(tiny_llama):
    before = vars(IntervenableModel)["_intervention_setter"]
    model = intervenable(tiny_llama[0], AdditionIntervention)
    alone = logits(model, IDS)
    with es.accelerate("pyvene"):
        logits(model, IDS)
        assert any("forward" in module.__dict__ for module in model.model.modules())
    assert not any("forward" in module.__dict__ for module in model.model.modules())
    assert torch.equal(logits(model, IDS), alone)
    with es.accelerate("pyvene"):
        assert vars(IntervenableModel)["_intervention_setter"] is not before
    assert vars(IntervenableModel)["_intervention_setter"] is before
