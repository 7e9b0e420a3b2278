"""repeng alone against repeng accelerated, for everything that it offers."""

import copy

import numpy as np
import pytest
import torch

import emosteer as es

from .conftest import TEXTS, double
from .differential import DTYPES, assert_as_good, both, cosine, kernels_run

repeng = pytest.importorskip("repeng")
from repeng import ControlModel, ControlVector, DatasetEntry  # noqa: E402
from repeng.control import ControlModule, model_layer_list  # noqa: E402

LAYERS = [1, 2, -1]


def vector(seed=0, depth=4, dim=32):
    rng = np.random.default_rng(seed)
    return ControlVector("llama", {layer: rng.normal(size=dim).astype(np.float32) for layer in range(depth)})


VECTORS = {
    "plain": vector(),
    "negated": -vector(),
    "merged": vector(0) + 0.5 * vector(1) - vector(2) / 2,
    "zero": 0.0 * vector(),
}


def logits(model, given, control=None, layers=LAYERS, **kwargs):
    wrapped = ControlModel(copy.deepcopy(model), layers)
    if control is not None:
        wrapped.set_control(control, **kwargs)
    with torch.no_grad():
        return wrapped(**given).logits


def real(values, given):
    """The tokens that are no padding."""
    return values[given["attention_mask"].bool()]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", VECTORS)
def test_forward_of_a_padded_batch(tiny_llama, batch, dtype, normalize, name):
    model, _ = tiny_llama
    how = {"coeff": 1.5, "normalize": normalize}
    low = copy.deepcopy(model).to(dtype)
    alone, fast = both("repeng", lambda: logits(low, batch, VECTORS[name], **how))
    exact = logits(double(low), batch, VECTORS[name], **how)
    unsteered = logits(double(low), batch) if name != "zero" and dtype != torch.bfloat16 else None
    assert_as_good(
        *(real(values, batch) for values in (fast, alone, exact)),
        unsteered=None if unsteered is None else real(unsteered, batch),
    )


@pytest.mark.parametrize("normalize", [False, True])
def test_generate(tiny_llama, batch, normalize):
    model, _ = tiny_llama
    given = {key: batch[key] for key in ("input_ids", "attention_mask")}

    def run():
        wrapped = ControlModel(copy.deepcopy(model), LAYERS)
        wrapped.set_control(vector(), 0.7, normalize=normalize)
        return wrapped.generate(**given, max_new_tokens=12, do_sample=False)

    alone, fast = both("repeng", run)
    assert alone.tolist() == fast.tolist()
    wrapped = ControlModel(copy.deepcopy(model), LAYERS)
    assert wrapped.generate(**given, max_new_tokens=12, do_sample=False).tolist() != fast.tolist()


@pytest.mark.parametrize("shape", [(3, 1, 32), (1, 1, 32)])
def test_raw_control_of_a_vector_a_row(tiny_llama, batch, shape):
    model, _ = tiny_llama
    control = dict.fromkeys(range(4), torch.randn(shape, generator=torch.Generator().manual_seed(0)))

    def run():
        wrapped = ControlModel(copy.deepcopy(model), LAYERS)
        wrapped.set_raw_control(control, normalize=True)
        with torch.no_grad():
            return wrapped(**batch).logits

    alone, fast = both("repeng", run)
    torch.testing.assert_close(real(fast, batch), real(alone, batch), rtol=1e-4, atol=1e-4)


def test_batch_without_position_ids(tiny_llama):
    """The library alone makes a mask of one row of them and cannot reshape it."""
    model, _ = tiny_llama
    given = {"input_ids": torch.arange(40).view(2, 20) + 10}
    with pytest.raises(RuntimeError):
        logits(model, given, vector())
    with es.accelerate("repeng"):
        together = logits(model, given, vector(), normalize=True)
    for row in range(2):
        alone = logits(model, {"input_ids": given["input_ids"][row : row + 1]}, vector(), normalize=True)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)


def test_right_padding_with_zero_position_ids(tiny_llama):
    """The library alone takes the last zero for the start of the text and steers nothing."""
    model, tokenizer = tiny_llama
    short = tokenizer(TEXTS[1] + " said", return_tensors="pt")["input_ids"]
    padded = torch.nn.functional.pad(short, (0, 3))
    mask = (torch.arange(padded.shape[1]) < short.shape[1]).long()[None]
    position = (mask.cumsum(1) - 1) * mask
    given = {"input_ids": padded, "attention_mask": mask, "position_ids": position}
    expected = logits(model, {"input_ids": short}, vector())
    assert not torch.allclose(logits(model, given, vector())[:, : short.shape[1]], expected, atol=1e-2)
    with es.accelerate("repeng"):
        fast = logits(model, given, vector())[:, : short.shape[1]]
    torch.testing.assert_close(fast, expected, rtol=1e-4, atol=1e-4)


def test_row_of_several_texts(tiny_llama):
    """The library alone takes the last zero for the start of the only text."""
    model, _ = tiny_llama
    ids = torch.arange(20)[None] + 40
    given = {"input_ids": ids, "position_ids": torch.tensor([[*range(8), *range(12)]])}

    def first_text():
        return logits(model, given, vector())[:, :8]

    expected = logits(model, {"input_ids": ids[:, :8]}, vector())
    assert not torch.allclose(first_text(), expected, atol=1e-2)
    with es.accelerate("repeng"):
        torch.testing.assert_close(first_text(), expected, rtol=1e-4, atol=1e-4)


def test_padding_whose_rows_are_zero(tiny_llama, batch):
    """The library alone divides the norm of a row of zeros by itself; attention spreads that to real tokens."""
    model, tokenizer = tiny_llama
    mask = batch["attention_mask"]
    ids = batch["input_ids"].masked_fill(mask == 0, tokenizer.pad_token_id)
    given = {**batch, "input_ids": ids}
    assert not logits(model, given, vector(), layers=range(4), normalize=True)[mask.bool()].isfinite().all()
    with es.accelerate("repeng"):
        together = logits(model, given, vector(), layers=range(4), normalize=True)
        for row, length in enumerate(mask.sum(1)):
            one = {"input_ids": ids[row : row + 1, -length:]}
            alone = logits(model, one, vector(), layers=range(4), normalize=True)
            torch.testing.assert_close(together[row : row + 1, -length:], alone, rtol=1e-4, atol=1e-4)


def test_rows_whose_norm_overflows_in_float16():
    """The library alone divides infinity by infinity."""
    block = torch.nn.Identity()
    module = ControlModule(block)
    x = torch.full((1, 2, 64), 30000.0, dtype=torch.float16)
    module.set_control(
        repeng.control.BlockControlParams(torch.linspace(-9e3, 9e3, 64).half(), normalize=True)
    )
    assert not module(x.clone()).isfinite().all()
    with es.accelerate("repeng"):
        fast = module(x.clone())
    norm = torch.linalg.vector_norm
    assert fast.isfinite().all()
    torch.testing.assert_close(norm(fast.double(), dim=-1), norm(x.double(), dim=-1), rtol=1e-3, atol=0)


def test_own_operator_falls_back_and_says_so_once(tiny_llama, batch):
    model, _ = tiny_llama

    def run():
        return logits(model, batch, vector(), operator=lambda current, control: current - control)

    alone = run()
    with (
        es.accelerate("repeng"),
        pytest.warns(UserWarning, match="operator is a function of your own") as said,
    ):
        first, second = run(), run()
    assert len(said) == 1
    assert torch.equal(first, alone)
    assert torch.equal(second, alone)


def test_control_of_a_vector_a_token_falls_back(tiny_llama, batch):
    model, _ = tiny_llama
    control = dict.fromkeys(range(4), torch.randn(*batch["input_ids"].shape, 32))

    def run():
        wrapped = ControlModel(copy.deepcopy(model), LAYERS)
        wrapped.set_raw_control(control)
        with torch.no_grad():
            return wrapped(**batch).logits

    alone = run()
    with es.accelerate("repeng"), pytest.warns(UserWarning, match="one vector a token"):
        assert torch.equal(run(), alone)


def test_float64_falls_back(tiny_llama, batch):
    alone = logits(double(tiny_llama[0]), batch, vector())
    with es.accelerate("repeng"), kernels_run() as calls:
        assert torch.equal(logits(double(tiny_llama[0]), batch, vector()), alone)
    assert not calls


def test_a_changed_control_is_seen(tiny_llama, batch):
    model, _ = tiny_llama
    wrapped = ControlModel(copy.deepcopy(model), LAYERS)
    with es.accelerate("repeng"), torch.no_grad():
        wrapped.set_control(vector())
        first = wrapped(**batch).logits
        for layer in LAYERS:
            model_layer_list(wrapped)[layer].params.control.mul_(-1)
        second = wrapped(**batch).logits
        wrapped.set_control(-vector())
        third = wrapped(**batch).logits
        wrapped.reset()
        reset = wrapped(**batch).logits
    assert not torch.allclose(first, second)
    assert torch.equal(second, third)
    assert torch.equal(reset, logits(model, batch))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_control_set_in_one_mode_and_used_in_another(tiny_llama, batch, mode):
    model, _ = tiny_llama
    expected = logits(model, batch, vector())
    with es.accelerate("repeng"):
        wrapped = ControlModel(copy.deepcopy(model), LAYERS)
        with mode():
            wrapped.set_control(vector())
            inside = wrapped(**batch).logits.clone()
        with torch.no_grad():
            outside = wrapped(**batch).logits
    torch.testing.assert_close(real(inside, batch), real(expected, batch), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(real(outside, batch), real(expected, batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalize", [False, True])
def test_gradients(tiny_llama, batch, normalize):
    model, _ = tiny_llama

    def run():
        wrapped = ControlModel(copy.deepcopy(model), LAYERS)
        wrapped.set_control(vector(), normalize=normalize)
        real(wrapped(**batch).logits, batch).square().mean().backward()
        return wrapped.model.model.embed_tokens.weight.grad

    alone, fast = both("repeng", run)
    torch.testing.assert_close(fast, alone, rtol=1e-3, atol=1e-5)


def test_hidden_states_are_those_of_the_library(tiny_llama, batch):
    model, _ = tiny_llama

    def run():
        wrapped = ControlModel(copy.deepcopy(model), LAYERS)
        wrapped.set_control(vector())
        with torch.no_grad():
            return torch.stack(wrapped(**batch, output_hidden_states=True).hidden_states)

    alone, fast = both("repeng", run)
    kept = batch["attention_mask"].bool()
    torch.testing.assert_close(fast[:, kept], alone[:, kept], rtol=1e-4, atol=1e-4)


def test_compiled(tiny_llama, batch):
    model, _ = tiny_llama
    alone = logits(model, batch, vector())
    with es.accelerate("repeng"), torch.no_grad():
        wrapped = ControlModel(copy.deepcopy(model), LAYERS)
        wrapped.set_control(vector())
        fast = torch.compile(wrapped.model, backend="eager")(**batch).logits
    torch.testing.assert_close(fast, alone, rtol=1e-4, atol=1e-4)


def test_undone_while_a_control_is_set(tiny_llama, batch):
    model, _ = tiny_llama
    forward = vars(ControlModule)["forward"]
    hiddens = repeng.extract.batched_get_hiddens
    alone = logits(model, batch, vector())
    handle = es.accelerate("repeng")
    wrapped = ControlModel(copy.deepcopy(model), LAYERS)
    wrapped.set_control(vector())
    with torch.no_grad():
        wrapped(**batch)
        handle.undo()
        assert torch.equal(wrapped(**batch).logits, alone)
    assert vars(ControlModule)["forward"] is forward
    assert repeng.extract.batched_get_hiddens is hiddens


def test_norms_run_on_the_kernel_while_a_control_is_set(tiny_llama):
    model, _ = tiny_llama

    def patched():
        return [name for name, module in model.named_modules() if "forward" in module.__dict__]

    with es.accelerate("repeng"):
        wrapped = ControlModel(model, LAYERS)
        assert not patched()
        wrapped.set_control(vector())
        wrapped.set_control(-vector())
        assert len(patched()) == 9
        wrapped.reset()
        assert not patched()
        wrapped.set_control(vector())
        wrapped.unwrap()
        assert not patched()
        again = ControlModel(model, LAYERS)
        again.set_control(vector(), operator=lambda current, control: current)
        assert not patched()
        again.set_control(vector())
    assert not patched()
    again.unwrap()


# ---- training --------------------------------------------------------------------------------------------


def assert_same_vectors(fast, alone):
    assert fast.directions.keys() == alone.directions.keys()
    assert list(fast.directions) == list(alone.directions)
    for layer, direction in alone.directions.items():
        assert fast.directions[layer].dtype == direction.dtype
        assert cosine(fast.directions[layer], direction) > 1 - 1e-5, layer


@pytest.mark.parametrize("method", ["pca_diff", "pca_center"])
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gpt2"])
def test_train(request, pairs, family, method):
    model, tokenizer = request.getfixturevalue(family)
    dataset = [DatasetEntry(*pair) for pair in pairs]

    def run(**kwargs):
        return ControlVector.train(model, tokenizer, dataset, method=method, **kwargs)

    alone = run()
    with es.accelerate("repeng"):
        assert_same_vectors(run(), alone)
        assert_same_vectors(run(batch_size=3), alone)
    some = run(hidden_layers=[-1, 1])
    with es.accelerate("repeng"):
        assert_same_vectors(run(hidden_layers=[-1, 1]), some)


def test_train_with_learned_positions_and_left_padding(tiny_gpt2, pairs):
    """In the library alone a text stands where padding leaves it, so vectors depend on the batch."""
    model, tokenizer = tiny_gpt2
    dataset = [DatasetEntry(*pair) for pair in pairs]
    right = ControlVector.train(model, tokenizer, dataset)
    tokenizer.padding_side = "left"
    left = ControlVector.train(model, tokenizer, dataset)
    assert cosine(left.directions[1], right.directions[1]) < 1 - 1e-3
    with es.accelerate("repeng"):
        assert_same_vectors(ControlVector.train(model, tokenizer, dataset), right)


def test_train_leaves_the_model_alone(tiny_llama, pairs):
    model, tokenizer = tiny_llama
    wrapped = ControlModel(model, LAYERS)
    dataset = [DatasetEntry(*pair) for pair in pairs]
    alone = ControlVector.train(wrapped, tokenizer, dataset)
    before = {name: dict(module.__dict__) for name, module in wrapped.named_modules()}
    with es.accelerate("repeng"):
        fast = ControlVector.train(wrapped, tokenizer, dataset)
    assert_same_vectors(fast, alone)
    for name, module in wrapped.named_modules():
        assert module.__dict__ == before[name]
        assert not module._forward_hooks


def test_train_of_a_steered_model_is_the_librarys(tiny_llama, pairs):
    model, tokenizer = tiny_llama
    wrapped = ControlModel(model, LAYERS)
    wrapped.set_control(vector())
    dataset = [DatasetEntry(*pair) for pair in pairs]

    def run():  # one text at a time: batches without position ids fail in the library alone
        return ControlVector.train(wrapped, tokenizer, dataset, batch_size=1)

    alone = run()
    with es.accelerate("repeng"):
        assert_same_vectors(run(), alone)


# ---- a real model ----------------------------------------------------------------------------------------


@pytest.mark.model
def test_smollm2(smollm2, pairs):
    model, tokenizer = smollm2
    dataset = [DatasetEntry(*pair) for pair in pairs]
    alone = ControlVector.train(model, tokenizer, dataset)
    with es.accelerate("repeng"):
        trained = ControlVector.train(model, tokenizer, dataset)
    assert_same_vectors(trained, alone)
    given = tokenizer(TEXTS, return_tensors="pt", padding=True)
    wrapped = ControlModel(model, list(range(10, 20)))
    try:
        for how in ({}, {"normalize": True}):

            def run(how=how):
                wrapped.set_control(alone, -1.5, **how)
                return wrapped.generate(**given, max_new_tokens=16, do_sample=False)

            tokens, fast = both("repeng", run)
            assert tokens.tolist() == fast.tolist()
    finally:
        wrapped.unwrap()
