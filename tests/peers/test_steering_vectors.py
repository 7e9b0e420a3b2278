"""steering-vectors alone against steering-vectors accelerated, for everything that it offers."""

import copy

import pytest
import torch

import emosteer as es

from .conftest import TEXTS, double
from .differential import DTYPES, assert_as_good, both, cosine, kernels_run

steering_vectors = pytest.importorskip("steering_vectors")
from steering_vectors import (  # noqa: E402
    SteeringVector,
    SteeringVectorTrainingSample,
    ablation_operator,
    ablation_then_addition_operator,
    addition_operator,
    extract_activations,
    pca_aggregator,
    train_steering_vector,
)

OPERATORS = {
    "none": None,
    "add": addition_operator(),
    "ablate": ablation_operator(),
    "ablate then add": ablation_then_addition_operator(),
}
TOKENS = {
    "all": {},
    "from the third": {"min_token_index": 2},
    "listed": {"token_indices": [1, 4, -1]},
    "slice": {"token_indices": slice(2, 6)},
    "to the end": {"token_indices": slice(-3, None)},
    "mask": {"token_indices": torch.tensor([1, 0] * 50)},
    "mask of rows": {"token_indices": torch.tensor([[1, 0] * 50, [0, 1] * 50, [1, 1] * 50])},
}


def vector(dtype=torch.float32, layer_type="decoder_block", dim=32, layers=(1, 2, 3)):
    generator = torch.Generator().manual_seed(0)
    return SteeringVector({n: torch.randn(dim, generator=generator).to(dtype) for n in layers}, layer_type)


def cut(how, length):
    """Masks as long as the text."""
    return {key: v[..., :length] if isinstance(v, torch.Tensor) else v for key, v in how.items()}


def logits(model, given, steered_by=None, **how):
    with torch.no_grad():
        if steered_by is None:
            return model(**given).logits
        with applied(steered_by, model, **how):
            return model(**given).logits


def applied(steered_by, model, **how):
    """With token_indices the library's own `apply` has to be told that there is no other choice."""
    return steered_by.apply(model, **({"min_token_index": None, **how} if "token_indices" in how else how))


def real(values, given):
    return values[given["attention_mask"].bool()]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_operators(tiny_llama, batch, dtype, name):
    model = copy.deepcopy(tiny_llama[0]).to(dtype)
    how = {"operator": OPERATORS[name], "multiplier": 1.5}
    alone, fast = both("steering-vectors", lambda: logits(model, batch, vector(dtype), **how))
    exact = logits(double(model), batch, vector(dtype).to(torch.float64), **how)
    assert_as_good(
        *(real(values, batch) for values in (fast, alone, exact)),
        unsteered=real(logits(double(model), batch), batch) if dtype != torch.bfloat16 else None,
    )


@pytest.mark.parametrize("chosen", TOKENS)
@pytest.mark.parametrize("name", OPERATORS)
def test_chosen_tokens(tiny_llama, batch, chosen, name):
    model, _ = tiny_llama
    how = {"operator": OPERATORS[name], **cut(TOKENS[chosen], batch["input_ids"].shape[1])}
    alone, fast = both("steering-vectors", lambda: logits(model, batch, vector(), **how))
    torch.testing.assert_close(real(fast, batch), real(alone, batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer_type", ["self_attn", "mlp", "input_layernorm", "post_attention_layernorm"])
@pytest.mark.parametrize("chosen", ["all", "listed"])
def test_layer_types(tiny_llama, batch, layer_type, chosen):
    model, _ = tiny_llama
    made = vector(layer_type=layer_type)
    alone, fast = both("steering-vectors", lambda: logits(model, batch, made, **TOKENS[chosen]))
    torch.testing.assert_close(real(fast, batch), real(alone, batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", OPERATORS)
def test_generate(tiny_llama, batch, name):
    model, _ = tiny_llama
    given = {key: batch[key] for key in ("input_ids", "attention_mask")}

    def run():
        with vector().apply(model, operator=OPERATORS[name]):
            return model.generate(**given, max_new_tokens=12, do_sample=False)

    alone, fast = both("steering-vectors", run)
    assert alone.tolist() == fast.tolist()


@pytest.mark.parametrize(
    "how",
    [
        {"min_token_index": 5},
        {"token_indices": [2, 3]},
        {"token_indices": slice(0, 4)},
        {"token_indices": torch.tensor([0, 0, 1] * 10)},
    ],
    ids=str,
)
@pytest.mark.parametrize("layers", [(0,), (1, 3)])
def test_chosen_tokens_are_the_same_with_a_cache(tiny_llama, how, layers):
    """The library alone counts from each step's own first token: it leaves generated tokens unsteered, or fails."""
    model, _ = tiny_llama
    ids = torch.arange(30)[None] + 10
    made = vector(layers=layers)
    whole = logits(model, {"input_ids": ids}, made, **how)  # the library, all at once
    with es.accelerate("steering-vectors"), torch.no_grad(), applied(made, model, **how):
        cache, parts = None, []
        for start, stop in ((0, 12), (12, 13), (13, 20), *((n, n + 1) for n in range(20, 30))):
            out = model(ids[:, start:stop], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
    steps = torch.cat(parts, 1)
    torch.testing.assert_close(steps, whole, rtol=1e-4, atol=1e-4)


def test_generated_tokens_from_an_index_on_are_steered(tiny_llama):
    model, _ = tiny_llama
    ids = torch.arange(8)[None] + 40
    asked = {"max_new_tokens": 10, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    made = vector()
    with es.accelerate("steering-vectors"), made.apply(model, min_token_index=3):
        fast = model.generate(ids, **asked)
    slow = ids
    for _ in range(10):
        with made.apply(model, min_token_index=3), torch.no_grad():
            slow = torch.cat([slow, model(slow, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert fast.tolist() == slow.tolist()


def test_apply_takes_token_indices(tiny_llama, batch):
    """The library alone asks for one of two choices and makes the other itself."""
    model, _ = tiny_llama
    with pytest.raises(UnboundLocalError), vector().apply(model, token_indices=[1, 2]):
        pass
    expected = logits(model, batch, vector(), token_indices=[1, 2])
    with es.accelerate("steering-vectors"), vector().apply(model, token_indices=[1, 2]), torch.no_grad():
        fast = model(**batch).logits
    torch.testing.assert_close(real(fast, batch), real(expected, batch), rtol=1e-4, atol=1e-4)


def test_a_vector_of_zeros_is_not_ablated(tiny_llama, batch):
    """The library alone divides by its length."""
    model, _ = tiny_llama
    made = SteeringVector({1: torch.zeros(32)})
    how = {"operator": ablation_operator()}
    assert logits(model, batch, made, **how).isnan().any()
    with es.accelerate("steering-vectors"):
        fast = logits(model, batch, made, **how)
    torch.testing.assert_close(real(fast, batch), real(logits(model, batch), batch), rtol=1e-4, atol=1e-4)


def test_a_float32_vector_is_ablated_from_a_bfloat16_model(tiny_llama, batch):
    """The library alone multiplies matrices of two dtypes, which fails."""
    model = copy.deepcopy(tiny_llama[0]).bfloat16()
    how = {"operator": ablation_operator()}
    with pytest.raises(RuntimeError):
        logits(model, batch, vector(), **how)
    with es.accelerate("steering-vectors"):
        fast = logits(model, batch, vector(), **how)
    exact = logits(double(model), batch, vector().to(torch.float64), **how)
    torch.testing.assert_close(real(fast, batch).double(), real(exact, batch), rtol=0.1, atol=0.1)


def test_several_patches_at_once(tiny_llama, batch):
    model, _ = tiny_llama

    def run():
        one, other = vector(), vector(layers=(2, 3)).to(torch.float32)
        with one.apply(model, operator=ablation_operator()), other.apply(model, min_token_index=2):
            return model(**batch).logits.detach()

    alone, fast = both("steering-vectors", run)
    torch.testing.assert_close(real(fast, batch), real(alone, batch), rtol=1e-4, atol=1e-4)


def test_own_operator_falls_back_and_says_so_once(tiny_llama, batch):
    model, _ = tiny_llama

    def run():
        return logits(model, batch, vector(), operator=lambda original, pushed: original * 0.1 + pushed)

    alone = run()
    said = pytest.warns(UserWarning, match="operator is a function of your own")
    with es.accelerate("steering-vectors"), kernels_run() as calls, said as warned:
        first, second = run(), run()
    assert len(warned) == 1
    assert not calls
    assert torch.equal(first, alone)
    assert torch.equal(second, alone)


@pytest.mark.parametrize("how", [{"token_indices": [0, 99]}, {"token_indices": torch.ones(3)}], ids=str)
def test_what_the_library_refuses_is_refused(tiny_llama, batch, how):
    model, _ = tiny_llama
    for accelerated in (False, True):
        handle = es.accelerate("steering-vectors") if accelerated else None
        with pytest.raises((IndexError, RuntimeError)):
            logits(model, batch, vector(), **how)
        if handle:
            handle.undo()


def test_gradients(tiny_llama, batch):
    model, _ = tiny_llama

    def run():
        one = copy.deepcopy(model)
        with vector().apply(one, operator=ablation_then_addition_operator(), min_token_index=1):
            real(one(**batch).logits, batch).square().mean().backward()
        return one.model.embed_tokens.weight.grad

    alone, fast = both("steering-vectors", run)
    torch.testing.assert_close(fast, alone, rtol=1e-3, atol=1e-5)


def test_undone_while_a_patch_is_on(tiny_llama, batch):
    model, _ = tiny_llama
    methods = dict(vars(SteeringVector))
    alone = logits(model, batch, vector(), min_token_index=1)
    handle = es.accelerate("steering-vectors")
    patch = vector().patch_activations(model, min_token_index=1)
    with torch.no_grad():
        model(**batch)
        handle.undo()
        assert torch.equal(model(**batch).logits, alone)
        patch.remove()
        assert torch.equal(model(**batch).logits, logits(model, batch))
    assert dict(vars(SteeringVector)) == methods
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# ---- training --------------------------------------------------------------------------------------------


def assert_same_vectors(fast, alone):
    assert list(fast.layer_activations) == list(alone.layer_activations)
    for layer, direction in alone.layer_activations.items():
        assert fast.layer_activations[layer].dtype == direction.dtype
        assert cosine(fast.layer_activations[layer], direction) > 1 - 1e-5, layer


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"batch_size": 5},
        {"layers": [0, -1]},
        {"layer_type": "mlp"},
        {"layer_type": "self_attn", "layers": [1]},
        {"aggregator": pca_aggregator()},
        {"read_token_index": 3},
        {"read_token_index": lambda text: len(text) % 5, "move_to_cpu": True},
    ],
    ids=lambda how: ",".join(how) or "default",
)
def test_train(request, pairs, family, how):
    model, tokenizer = request.getfixturevalue(family)
    alone = train_steering_vector(model, tokenizer, pairs, **how)
    with es.accelerate("steering-vectors"):
        assert_same_vectors(train_steering_vector(model, tokenizer, pairs, **how), alone)
    assert not any(module._forward_hooks for module in model.modules())


def test_samples_with_places_of_their_own(tiny_llama, pairs):
    model, tokenizer = tiny_llama
    samples = [SteeringVectorTrainingSample(a, b, 2, -3) for a, b in pairs]
    alone = train_steering_vector(model, tokenizer, samples)
    with es.accelerate("steering-vectors"):
        assert_same_vectors(train_steering_vector(model, tokenizer, samples), alone)
    far = [SteeringVectorTrainingSample("short", "too", 99)]
    with es.accelerate("steering-vectors"), pytest.raises(IndexError, match="token 99"):
        train_steering_vector(model, tokenizer, far)


def test_training_sees_a_patched_model(tiny_llama, pairs):
    """A vector trained while another is applied: hooks run in the order in which they were added."""
    model, tokenizer = tiny_llama

    def run():
        with vector().apply(model):
            return train_steering_vector(model, tokenizer, pairs)

    alone = run()
    with es.accelerate("steering-vectors"):
        assert_same_vectors(run(), alone)


def test_activations(tiny_llama, pairs):
    model, tokenizer = tiny_llama
    alone = extract_activations(model, tokenizer, pairs)
    with es.accelerate("steering-vectors"):
        fast = steering_vectors.extract_activations(model, tokenizer, pairs)
    for mine, theirs in zip(fast, alone):
        for layer in theirs:
            torch.testing.assert_close(torch.cat(mine[layer]), torch.cat(theirs[layer]), rtol=1e-3, atol=1e-4)


# ---- a real model ----------------------------------------------------------------------------------------


@pytest.mark.model
def test_smollm2(smollm2, pairs):
    model, tokenizer = smollm2
    alone = train_steering_vector(model, tokenizer, pairs[:6], layers=list(range(10, 20)))
    with es.accelerate("steering-vectors"):
        trained = train_steering_vector(model, tokenizer, pairs[:6], layers=list(range(10, 20)))
    assert_same_vectors(trained, alone)
    given = tokenizer(TEXTS, return_tensors="pt", padding=True)
    for name, operator in OPERATORS.items():

        def run(operator=operator):
            with alone.apply(model, operator=operator, multiplier=-0.5):
                return model.generate(**given, max_new_tokens=12, do_sample=False)

        tokens, fast = both("steering-vectors", run)
        assert tokens.tolist() == fast.tolist(), name
