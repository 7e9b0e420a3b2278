"""Compiled as a whole, block by block, by `generate` itself: the same tokens are steered as in eager mode."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import emosteer as es

from ..conftest import padded
from .conftest import POSITIONS, PROGRAMS, compiled, decode, steer


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("whole", "static"),
        ("regional", "static"),
        pytest.param("whole", "dynamic", marks=pytest.mark.full),
        pytest.param("regional", "dynamic", marks=pytest.mark.full),
    ],
)
def test_every_position_on_the_code_of_the_first(model, bank, prompts, follow, mask, how, kind):
    """Two paddings, two tables, eight kinds of positions: as in eager mode, and compiled once for each shape."""
    counter = CompileCounter()
    call = compiled(model, how, counter)
    with torch.compiler.set_stance("force_eager"):
        clean = decode(model, model, prompts, follow)
    decode(call, model, prompts, follow, kind=kind)
    unsteered, counter.frame_count = counter.frame_count, 0
    for side in ("left", "right"):
        for programs in (PROGRAMS, ["calm"]):
            strength = 0.3 if len(programs) == 1 else None
            for positions in [*POSITIONS, mask[: len(programs)]]:
                with steer(model, bank, programs, strength, layers="all", positions=positions):
                    with torch.compiler.set_stance("force_eager"):
                        expected = decode(model, model, prompts, follow, side=side, kind="dynamic")
                        static = decode(model, model, prompts, follow, side=side)
                    got = decode(call, model, prompts, follow, side=side, kind=kind)
                torch.testing.assert_close(static, expected, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
                assert (expected - clean).abs().max() > 0.1
    assert 0 < counter.frame_count <= unsteered
    if (how, kind) == ("whole", "static"):
        assert counter.frame_count == 2


@pytest.mark.parametrize(
    "positions",
    [
        "generated",
        *(pytest.param(p, marks=pytest.mark.full) for p in ("prompt", slice(-1, None), slice(2, 9))),
    ],
    ids=str,
)
def test_generate_compiles_by_itself(model, bank, prompts, positions):
    """What `generate` does on a GPU with a static cache; it hands the compiled steps a mask of four dimensions."""
    from transformers import CompileConfig

    ids, mask = padded(prompts)
    settings = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)
    settings |= dict(return_dict_in_generate=True, output_logits=True)
    config = CompileConfig(backend="eager", fullgraph=True, dynamic=False)
    config._compile_all_devices = True

    def logits(**how):
        out = model.generate(input_ids=ids, attention_mask=mask, **settings, **how)
        return torch.stack(out.logits)

    with steer(model, bank, PROGRAMS, layers="all", positions=positions):
        expected = logits()
        torch.testing.assert_close(
            logits(cache_implementation="static", compile_config=config), expected, rtol=1e-4, atol=1e-4
        )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert (logits() - expected).abs().max() > 0.1


@pytest.mark.full
def test_compiled_between_two_steerings_while_generating(model, bank, prompts):
    """A step that was compiled for one steering serves the next, with other prompts."""
    counter = CompileCounter()
    forward = model.forward
    model.forward = torch.compile(forward, backend=counter, fullgraph=True, dynamic=False)
    settings = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    settings |= dict(cache_implementation="static", disable_compile=True)
    try:
        for k, positions in enumerate(["generated", "prompt", "generated", slice(-2, None)]):
            ids, mask = padded(
                [p[: 2 + (j + k) % 5] + [7] * (5 - (j + k) % 5) for j, p in enumerate(prompts)]
            )
            mask[:, : 1 + k] = 0
            with steer(model, bank, PROGRAMS, layers="all", positions=positions):
                got = model.generate(input_ids=ids, attention_mask=mask, **settings)
                with torch.compiler.set_stance("force_eager"):
                    expected = model.generate(input_ids=ids, attention_mask=mask, **settings)
            assert got.tolist() == expected.tolist()
        assert counter.frame_count == 2
    finally:
        del model.forward


def test_ten_steerings_and_a_hundred_programs_on_two_graphs(model, bank, prompts, follow):
    counter = CompileCounter()
    call = torch.compile(model, backend=counter, fullgraph=True)
    names, seen = ["calm", "angry", "joyful", "desperate"], set()
    for k in range(10):
        rows = [names[(k + j) % 4] for j in range((4, 2, 1)[k % 3])]
        with steer(model, bank, rows, 0.2, layers="all", positions=POSITIONS[k % len(POSITIONS)]) as steering:
            for j in range(10):
                steering.set(j % len(rows), es.add(names[(k + j) % 4], 0.02 * j) + es.cap("weary", 0.1))
                if j == 5 and len(rows) > 1:
                    with steering.batch([1, 0, -1, 1]):
                        decode(call, model, prompts, follow)
            seen.add(decode(call, model, prompts, follow).sum().item())
    assert counter.frame_count == 2
    assert len(seen) == 10


@pytest.mark.parametrize("how", ["whole", "regional"])
def test_rows_that_are_assigned(model, bank, prompts, follow, how):
    call = compiled(model, how, CompileCounter())
    with steer(model, bank, PROGRAMS, layers="all") as steering:
        plain = decode(call, model, prompts, follow)
        for rows in ([1, 0, 3, 2], [2, 2, -1, 0]):
            with steering.batch(rows):
                got = decode(call, model, prompts, follow)
                with torch.compiler.set_stance("force_eager"):
                    expected = decode(model, model, prompts, follow)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
            assert (got - plain).abs().max() > 0.1
        torch.testing.assert_close(decode(call, model, prompts, follow), plain)


def test_rows_that_do_not_fit_are_refused(model, bank, prompts, follow):
    call = compiled(model, "whole", CompileCounter())
    with (
        steer(model, bank, ["calm"] * 3, 0.3, layers="all"),
        pytest.raises(RuntimeError, match="divide evenly"),
    ):
        decode(call, model, prompts, follow)
    with steer(model, bank, ["calm"] * 2, 0.3, layers="all") as steering:
        with (
            steering.batch([0, 1]),
            pytest.raises(RuntimeError, match=r"as many as steering\.batch was told"),
        ):
            decode(call, model, prompts, follow)
        decode(call, model, prompts, follow)


@pytest.mark.parametrize("when", ["before", pytest.param("inside", marks=pytest.mark.full)])
def test_some_blocks_compiled(model, bank, prompts, follow, when):
    """The steering of an eager block must not wait for a norm inside a compiled one."""
    with steer(model, bank, PROGRAMS, layers="all", positions="generated"):
        expected = decode(model, model, prompts, follow)
    some = (model.model.layers[0], model.model.norm)
    if when == "before":
        for module in some:
            module.compile(backend="eager")
    with steer(model, bank, PROGRAMS, layers="all", positions="generated"):
        if when == "inside":
            for module in some:
                module.compile(backend="eager")
        got = decode(model, model, prompts, follow)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.full
def test_a_block_wrapped_inside(model, bank, prompts, follow):
    """`block.forward = torch.compile(block.forward)` while steered."""
    with steer(model, bank, PROGRAMS, layers="all", positions="prompt"):
        expected = decode(model, model, prompts, follow)
        for block in model.model.layers:
            block.forward = torch.compile(block.forward, backend="eager")
        got = decode(model, model, prompts, follow)
        for block in model.model.layers:
            block.forward = block.forward._torchdynamo_orig_callable
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_what_runs_is_not_what_was_patched(model, bank):
    """A stack that goes round its blocks' own forwards is told, not steered in vain."""
    stack = model.model

    class Around(type(stack.layers[0])):
        def __call__(self, *args, **kwargs):
            return type(self).forward(self, *args, **kwargs)

    clean = {name: dict(m.__dict__) for name, m in model.named_modules()}
    with steer(model, bank, "calm", 0.3):
        pass
    for block in stack.layers:
        block.__class__ = Around
    from emosteer.models import blocks, fusion

    found = blocks.find_decoder(model)  # as it was found before
    fusion._proved.clear()
    assert found.depth == 2
    with pytest.raises(ValueError, match="changed nothing in its output"):
        steer(model, bank, "calm", 0.3).attach()
    assert {name: dict(m.__dict__) for name, m in model.named_modules()} == clean


@pytest.mark.full
def test_a_mask_with_holes_needs_to_be_seen(model, bank, prompts, follow):
    """Compiled, a prompt that is padded in its middle can be told only by its two-dimensional mask."""
    ids, mask = padded([p[:5] for p in prompts if len(p) >= 5])
    mask[0, 2] = 0
    call = compiled(model, "whole", CompileCounter())
    with steer(model, bank, "calm", 0.3, layers="all", positions="prompt") as steering, torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(
            call(input_ids=ids, attention_mask=mask).logits, expected, rtol=1e-4, atol=1e-4
        )
        with (
            steering.batch(prompt_mask=mask),
            pytest.raises(RuntimeError, match="padding between its tokens"),
        ):
            call(input_ids=ids)
