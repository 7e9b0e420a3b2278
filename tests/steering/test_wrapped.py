"""Models with adapters and quantised models: steered as the reference, left as they were."""

import copy

import pytest
import torch

import emosteer as es

from .against_reference import assert_as_the_reference
from .conftest import padded, random_bank
from .test_restore import leftovers
from .tiny import tiny

PROGRAMS = [es.add("calm", 0.3), es.cap("angry", -0.1) + es.add("joyful", 0.2), es.rotate("weary", 20)]
IDS, MASK = padded([[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [15, 16, 17, 18, 19]])
GREEDY = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)


def adapted(kind, model):
    """A model with an adapter of a PEFT configuration's name."""
    peft = pytest.importorskip("peft", reason="adapters need peft: pip install peft")
    arguments = {
        "LoraConfig": dict(target_modules="all-linear", r=2, init_lora_weights=False),
        "IA3Config": dict(
            target_modules=r".*(k_proj|query_key_value|down_proj|dense_4h_to_h)",
            feedforward_modules=r".*(down_proj|dense_4h_to_h)",
        ),
        "PromptTuningConfig": dict(num_virtual_tokens=3),
        "PrefixTuningConfig": dict(num_virtual_tokens=3),
    }[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return peft.get_peft_model(model, getattr(peft, kind)(task_type="CAUSAL_LM", **arguments)).eval()


def quantised(kind, model):
    """A model with 8-bit linear layers."""
    if kind == "torch, activations too":
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    reason = "8-bit weights need torchao: pip install torchao"
    quantization = pytest.importorskip("torchao.quantization", reason=reason)
    config = {
        "torchao, weights": quantization.Int8WeightOnlyConfig,
        "torchao, activations too": quantization.Int8DynamicActivationInt8WeightConfig,
    }[kind]
    quantization.quantize_(model, config())
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK, use_cache=False).logits


WRAPPED = {
    "LoraConfig": adapted,
    "IA3Config": adapted,
    "torchao, weights": quantised,
    "torchao, activations too": quantised,
    "torch, activations too": quantised,
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
@pytest.mark.parametrize("kind", WRAPPED)
def test_steered_is_the_reference(kind, architecture, fused):
    model = WRAPPED[kind](kind, tiny(architecture))
    bank = random_bank(model)
    expected, unsteered = logits(model), model.generate(input_ids=IDS, attention_mask=MASK, **GREEDY)
    before = leftovers(model)
    with es.steer(model, bank, [None] * 3, layers="all", fused=False):
        assert torch.equal(logits(model), expected)
    steering = es.steer(model, bank, PROGRAMS, layers="all", fused=fused)
    # 8-bit activations jump where a rounding differs, which the kernel's norms may bring about
    tolerance = 2e-2 if "activations" in kind and fused else 2e-5
    assert_as_the_reference(model, bank, steering, lambda: logits(model), MASK, tolerance)
    with steering:
        text = model.generate(input_ids=IDS, attention_mask=MASK, **GREEDY)
    assert text.shape == (3, IDS.shape[1] + 5)
    assert not torch.equal(text, unsteered)
    assert torch.equal(logits(model), expected)
    assert leftovers(model) == before


def test_an_adapter_may_be_switched_while_steered():
    model = adapted("LoraConfig", tiny("llama"))
    bank = random_bank(model)
    bare = tiny("llama")
    with es.steer(bare, bank, PROGRAMS, layers="all"):
        expected = logits(bare)
    with es.steer(model, bank, PROGRAMS, layers="all"):
        assert not torch.allclose(logits(model), expected, atol=1e-2)
        with model.disable_adapter():
            torch.testing.assert_close(logits(model), expected)


def test_merging_while_steered():
    model = adapted("LoraConfig", tiny("llama"))
    bank = random_bank(model)
    with es.steer(model, bank, PROGRAMS, layers="all"):
        expected = logits(model)
        model.merge_adapter()
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    merged = copy.deepcopy(model).merge_and_unload()
    with es.steer(merged, random_bank(merged), PROGRAMS, layers="all"):
        torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_learned_tokens_are_the_first_of_the_prompt(kind):
    """Three of them, then the prompt of each row, padded on the left."""
    model = adapted(kind, tiny("llama"))
    bank = random_bank(model)

    def text(positions, program="calm"):
        with es.steer(model, bank, program, 0.5, layers=[0, 1], positions=positions):
            return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **GREEDY)[
                :, -5:
            ].tolist()

    ids = IDS[:, -3:]
    unsteered = text("all", None)
    assert text("generated") == text(slice(6, None))
    assert text("prompt") == text(slice(0, 6))
    assert len({str(t) for t in (unsteered, text("generated"), text("prompt"), text("all"))}) == 4
    assert [row[0] for row in text("generated")] == [row[0] for row in unsteered]
    assert text("all") == text(slice(0, None))
