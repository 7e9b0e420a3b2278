"""The grid: which units there are, which controls, and that it is never held."""

import itertools
import math
import tracemalloc

import pytest
import torch

import emosteer as es
from emosteer.sweep.plan import Plan, Prompt, arms_of, with_controls


def test_every_combination_once(sweep):
    one = sweep(
        programs=["calm", "angry", es.cap("proud", 0.1)], strengths=(0.2, 0.4), seeds=(0, 1), layers=[[1, 2], 3],
        positions=["all", "generated"], random_directions=2,
    )  # fmt: skip
    units = list(one.plan())
    studied = [u for u in units if not u.arm.control]
    random = [u for u in units if u.arm.control == "random"]
    unsteered = [u for u in units if u.arm.control == "unsteered"]
    places = 2 * 2 * 3 * 2  # layer sets, positions, prompts, seeds
    assert len(studied) == 5 * places
    assert len(random) == 3 * 2 * places  # two strengths and the cap, two directions
    assert len(unsteered) == 3 * 2  # where it would steer makes no difference
    assert len({u.id for u in units}) == len(units) == one.plan().size
    assert {(u.arm.concept, u.arm.strength) for u in studied if len(u.program.slots) == 1} >= {
        ("calm", 0.2),
        ("angry", 0.4),
    }
    assert all(math.isnan(u.arm.strength) for u in studied if u.arm.concept == "proud")


def test_random_controls_are_matched(bank):
    arms = arms_of(bank, ["calm", es.add("calm", 0.1) + es.cap("angry", 0.0)], (0.3,))
    wide, found = with_controls(bank, arms, random_directions=2, seed=5)
    random = [arm for arm in found if arm.control == "random"]
    assert [len(arm.program.slots) for arm in random] == [1, 1, 2, 2]
    assert [arm.program.slots[0].strength for arm in random] == [0.3, 0.3, 0.1, 0.1]
    assert random[2].program.slots[1].high == 0.0
    for arm in random:
        for name in arm.program.names:
            v = [wide.directions[layer][wide.index(name)] for layer in wide.layers]
            assert all(torch.equal(v[0], other) for other in v)  # the same at every layer
            assert float(v[0].norm()) == pytest.approx(1.0, abs=1e-6)
    again, _ = with_controls(bank, arms, random_directions=2, seed=5)
    other, _ = with_controls(bank, arms, random_directions=2, seed=6)
    name = random[0].program.names[0]
    assert torch.equal(again.directions[0][again.index(name)], wide.directions[0][wide.index(name)])
    assert not torch.equal(other.directions[0][other.index(name)], wide.directions[0][wide.index(name)])
    more, _ = with_controls(bank, arms, random_directions=9, seed=5)
    assert torch.equal(more.directions[0][more.index(name)], wide.directions[0][wide.index(name)])


def test_without_controls(sweep):
    assert {u.arm.control for u in sweep(controls=()).plan()} == {""}
    assert {u.arm.control for u in sweep(controls=["unsteered"]).plan()} == {"", "unsteered"}


def test_exclude_and_where(sweep):
    kept = sweep(exclude=[{"concept": "calm", "prompt": ["0", "1"]}, {"control": "random"}])
    units = list(kept.plan())
    assert {u.prompt.label for u in units if u.arm.concept == "calm"} == {"2"}
    assert "random" not in {u.arm.control for u in units}
    assert {u.prompt.label for u in units if u.arm.concept == "angry"} == {"0", "1", "2"}
    few = list(sweep(where=lambda at: at["prompt"] == "1" and at["layers"] != []).plan())
    assert {(u.prompt.label, u.layers) for u in few} == {("1", (1, 2))}
    assert {u.id for u in few} <= {u.id for u in sweep().plan()}


def test_excluded_units_are_not_waited_for(sweep, tmp_path):
    state = sweep(exclude=[{"control": "random"}]).run(tmp_path / "a", progress=False).status()
    assert state.units == state.done == 3 * 3


def test_a_billion_units_take_no_memory(bank):
    prompts = [Prompt(str(k), "", (k,)) for k in range(1000)]
    wide, arms = with_controls(bank, arms_of(bank, "all", [0.01 * k for k in range(1, 101)]))
    plan = Plan("m", wide, prompts, arms, seeds=range(1000), layers=[(1,), (2,)])
    assert plan.size > 10**9
    first = list(itertools.islice(plan, 3))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for unit in itertools.islice(plan, 20000):
        assert unit.id
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 2_000_000
    assert list(itertools.islice(plan, 3)) == first


def test_labels_of_positions(sweep):
    made = sweep(positions=["generated", slice(-1, None), torch.tensor([True, False, True])])
    assert made.position_labels == ("generated", "-1:", "mask:101")
    with pytest.raises(ValueError, match="positions must be"):
        sweep(positions=["most"])
    with pytest.raises(TypeError, match="bool"):
        sweep(positions=[torch.ones(3)])


def test_prompts(sweep, tok):
    chat = [{"role": "user", "content": "hello"}]
    one = sweep(prompts=["plain", chat, {"label": "mine", "text": "other"}, {"messages": [*chat, *chat]}])
    prompts = one.plan().prompts
    assert [p.label for p in prompts] == ["0", "1", "mine", "3"]
    assert prompts[1].text == "<s>user: hello</s><s>assistant: "
    assert list(prompts[1].tokens) == tok(prompts[1].text, add_special_tokens=False).input_ids
    for bad, error in (
        ([], "prompts is empty"),
        (["a", "a"], r"prompts\[1\] and prompts\[0\]"),
        ([{"label": "1", "text": "x"}, "y"], r"prompts\[1\] and prompts\[0\]"),
        ([""], r"prompts\[0\] has no token"),
        ([{"txt": "x"}], r"prompts\[0\] must have text or messages"),
    ):
        with pytest.raises(ValueError, match=error):
            sweep(prompts=bad).plan()
    with pytest.raises(TypeError, match=r"prompts\[0\] must be a text or a list of messages"):
        sweep(prompts=[3]).plan()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"programs": ["clam"]}, "did you mean 'calm'"),
        ({"strengths": ()}, r"programs\[0\] 'calm' is a name and needs strengths"),
        ({"strengths": (0.1, float("nan"))}, r"strengths\[1\] must be a finite number"),
        ({"strengths": (0.1, 0.1)}, "strengths has a value twice"),
        ({"seeds": (0.5,)}, r"seeds\[0\] must be an integer"),
        ({"programs": [3]}, r"programs\[0\] must be a name or a program, got int"),
        ({"controls": ["placebo"]}, "controls must be of unsteered, random"),
        ({"random_directions": 0}, "random_directions must be an integer of at least 1"),
        ({"metrics": []}, "metrics is empty"),
        ({"metrics": ["choices"]}, r"metrics\[0\] must be one of es.metrics, got str"),
        ({"metrics": [es.metrics.regex("a"), es.metrics.regex("b")]}, "two metrics are called 'regex'"),
        ({"positions": "most"}, "positions must be"),
        ({"tok": None}, "tok is missing"),
        ({"generation": {"max_new_tokens": 0}}, "max_new_tokens must be"),
        ({"generation": {"top_p": 0.0}}, "top_p must lie in"),
        ({"generation": {"temperature": -1}}, "temperature must be"),
    ],
    ids=str,
)
def test_wrong_arguments(sweep, change, error):
    with pytest.raises((TypeError, ValueError), match=error):
        sweep(**change).plan()


def test_wrong_layers_and_batches(sweep, tmp_path):
    with pytest.raises(ValueError, match="outside the model"):
        sweep(layers=[9]).plan()
    with pytest.raises(ValueError, match="batch_rows must be an integer of at least 1, got 0"):
        sweep(batch_rows=0).run(tmp_path / "a", progress=False)
