"""What is wrong is said before anything is patched, with what came, what was expected and what to do."""

import warnings

import pytest
import torch

import emosteer as es

from .conftest import CONCEPTS, padded, random_bank
from .test_restore import leftovers

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.fixture(autouse=True)
def nothing_is_left(model):
    before = leftovers(model)
    yield
    assert leftovers(model) == before


def steered(model, bank, *args, **kwargs):
    with es.steer(model, bank, *args, **kwargs):
        pytest.fail("the model was patched")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"programs": "clam", "strength": 0.1}, "calm"),
        ({"programs": [None, es.cap("agnry", 0.0)]}, "angry"),
        ({"programs": "calm"}, r"needs a strength, e\.g\. es\.steer\(model, bank, 'calm', 0\.1\)"),
        ({"programs": [], "strength": 0.1}, "programs is empty"),
        ({"programs": ["calm", "angry"], "strength": [0.1]}, "strength has 1 entries, expected 2"),
        ({"programs": "calm", "strength": float("nan")}, "strength.*nan"),
        ({"programs": "calm", "strength": float("inf")}, "strength.*inf"),
        (
            {"programs": "calm", "strength": 0.1, "layers": 9},
            "layer 9 is outside the model, which has blocks 0 to 3",
        ),
        ({"programs": "calm", "strength": 0.1, "layers": [0, -7]}, "-7"),
        ({"programs": "calm", "strength": 0.1, "layers": "upper"}, "upper"),
        ({"programs": "calm", "strength": 0.1, "layers": []}, "layers"),
        ({"programs": "calm", "strength": 0.1, "layers": 1.5}, "1.5"),
        ({"programs": "calm", "strength": 0.1, "positions": "answer"}, '"prompt", "generated".*answer'),
        ({"programs": "calm", "strength": 0.1, "positions": slice(0, 4, -1)}, "step must be at least 1"),
        (
            {"programs": "calm", "strength": 0.1, "positions": torch.ones(2, 4, dtype=torch.bool)},
            r"shape \[T\] or \[1, T\].*\[2, 4\]",
        ),
        (
            {"programs": "calm", "strength": 0.1, "positions": torch.ones(0, dtype=torch.bool)},
            r"shape \[T\] or \[1, T\].*\[0\]",
        ),
        ({"programs": "calm", "strength": 0.1, "scale": 0.0}, "scale of layer 1 must be a positive number"),
        ({"programs": "calm", "strength": 0.1, "scale": {0: 1.0}}, "scale has no entry for the layers"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_values(model, bank, arguments, message):
    with pytest.raises(ValueError, match=message):
        steered(model, bank, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"programs": 3}, "programs must be a name, a program, None or a sequence of them, got int"),
        ({"programs": [3]}, "a program must be a name, a program or None, got int"),
        ({"programs": {"calm": 0.1}}, "got dict"),
        ({"programs": "calm", "strength": 0.1, "positions": slice("a", None)}, "positions.start"),
        ({"programs": "calm", "strength": 0.1, "positions": [0, 1]}, "mask must be bool, got int64"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_types(model, bank, arguments, message):
    with pytest.raises(TypeError, match=message):
        steered(model, bank, **arguments)


def test_a_bank_that_is_none(model):
    with pytest.raises(TypeError, match="bank must be an emosteer Bank, got dict"):
        steered(model, {"calm": torch.ones(32)}, "calm", 0.1)


def test_a_bank_of_another_width(model):
    bank = es.Bank(CONCEPTS, {0: torch.randn(len(CONCEPTS), 48)}, scale={0: 1.0})
    with pytest.raises(ValueError, match="width 48.*LlamaForCausalLM has width 32"):
        steered(model, bank, "calm", 0.1, layers=[0])


def test_a_bank_without_the_layer(model):
    bank = es.Bank(CONCEPTS, {0: torch.randn(len(CONCEPTS), 32)}, scale={0: 1.0})
    with pytest.raises(ValueError, match=r"layers \[2\] are not in the bank, which has .* layers \[0\]"):
        steered(model, bank, "calm", 0.1, layers=[2])


def test_a_bank_without_a_scale(model):
    bank = es.Bank(CONCEPTS, {2: torch.randn(len(CONCEPTS), 32)})
    with pytest.raises(ValueError, match="no scale.*relative=True.*scale=1.0"):
        steered(model, bank, "calm", 0.1, layers=[2])
    with es.steer(model, bank, "calm", 0.1, layers=[2], relative=True):
        pass


def test_a_bank_of_another_model(model):
    made = random_bank(model)
    bank = es.Bank(made.names, made.directions, scale=made.scale, provenance={"model": "someone/else"})
    model.config._name_or_path = "this/one"
    with pytest.warns(UserWarning, match=r"extracted from 'someone/else' and the model is 'this/one'"):
        es.steer(model, bank, "calm", 0.1)
    with pytest.raises(ValueError, match="someone/else"):
        steered(model, bank, "calm", 0.1, strict=True)
    model.config._name_or_path = "someone/else"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        es.steer(model, bank, "calm", 0.1, strict=True)


def test_the_warning_points_at_the_caller(model):
    made = random_bank(model)
    bank = es.Bank(made.names, made.directions, scale=made.scale, provenance={"model": "someone/else"})
    model.config._name_or_path = "this/one"
    with pytest.warns(UserWarning, match="someone/else") as caught:
        es.steer(model, bank, "calm", 0.1)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("positions", ["all", slice(1, None)])
def test_a_batch_that_does_not_divide(model, bank, positions):
    programs = ["calm", "angry", "proud"]
    with (
        pytest.raises(ValueError, match="2 rows, which do not divide evenly over the 3 programs"),
        es.steer(model, bank, programs, 0.1, positions=positions),
        torch.no_grad(),
    ):
        model(input_ids=IDS)


def test_a_batch_that_does_not_divide_in_generate(model, bank):
    ids, mask = padded([[5, 6], [7]])
    with (
        pytest.raises(ValueError, match="do not divide evenly over the 3 programs"),
        es.steer(model, bank, ["calm"] * 3, 0.1),
    ):
        model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=2)


def test_set(model, bank):
    steering = es.steer(model, bank, ["calm", "angry"], 0.1)
    with pytest.raises(IndexError, match="row 2 is outside the table, which has rows 0 to 1"):
        steering.set(2, None)
    with pytest.raises(ValueError, match="prod.*proud"):
        steering.set(0, "prod", 0.1)
    many = sum((es.add(name, 0.1) for name in CONCEPTS[1:5]), es.add("calm", 0.1))
    with pytest.raises(ValueError, match="combines 5 directions, the table has 4 slots.*slots=5"):
        steering.set(0, many)
    with pytest.raises(ValueError, match="programs has 1 entries, expected 2"):
        steering.set_all(["calm"], 0.1)
    assert steering.programs == (es.add("calm", 0.1), es.add("angry", 0.1))


@pytest.mark.parametrize("row", [2, -2])
def test_a_batch_of_rows_that_are_not_there(model, bank, row):
    steering = es.steer(model, bank, ["calm", "angry"], 0.1)
    said = f"rows names row {row}; the table has rows 0 to 1, and -1 for none"
    with pytest.raises(ValueError, match=said), steering.batch([0, row]):
        pass


def test_what_must_be_named_stays_so(model, bank):
    with pytest.raises(TypeError, match="positional"):
        es.steer(model, bank, "calm", 0.1, "all")
    for made in (es.add, es.cap, es.floor, es.hold, es.rotate):
        with pytest.raises(TypeError, match="positional"):
            made("calm", 0.1, True)
    with pytest.raises(TypeError, match="positional"):
        es.ablate("calm", True)


def test_something_that_is_no_model(bank):
    with pytest.raises((TypeError, ValueError), match="Linear"):
        steered(torch.nn.Linear(4, 4), bank, "calm", 0.1)
