"""Mixed batches, shared prompts and refilled rows give each unit what it gives alone."""

import math
from contextlib import nullcontext

import pytest
import torch

import emosteer as es
from tests.steering.conftest import random_bank
from tests.steering.tiny import tiny

from . import alone
from .conftest import PROMPTS

m = es.metrics
READ_AT = 1
METRICS = [m.choices(["A", "B", " a longer one", "he"]), m.perplexity(), m.readings(layer=READ_AT)]
POSITIONS = [
    "all",
    "prompt",
    "generated",
    slice(-1, None),
    slice(3, 9),
    torch.tensor([False] * 4 + [True] * 40),
]


def check(sweep, rows, works, most=16):
    """Every row of a sweep against its unit run alone; of a large sweep, units from everywhere in it."""
    for work in works[:: max(len(works) // most, 1)]:
        unit = work.unit
        choices = rows[unit.id, "choices"]
        assert choices.error is None, choices.error
        expected, tokens = alone.outcome(sweep, unit, choices.values)
        assert dict(choices.values) == pytest.approx(expected, abs=2e-4)
        text = rows[unit.id, "text"].tokens
        assert text == tokens
        if text:
            scores = alone.unsteered_scores(sweep, unit, text)
            assert rows[unit.id, "perplexity"].value == pytest.approx(math.exp(-scores.mean()), rel=1e-3)
            projections = alone.mean_projection(sweep, unit, text, READ_AT)
            got = list(rows[unit.id, "readings"].values.values())
            torch.testing.assert_close(torch.tensor(got), projections.float(), atol=1e-4, rtol=1e-3)
        else:
            assert "no token was generated" in rows[unit.id, "perplexity"].error


@pytest.mark.parametrize("layers", [[[1, 2]], ["all"], [3]], ids=str)
def test_each_unit_alone(sweep, layers):
    one = sweep(
        metrics=METRICS, layers=layers, positions=POSITIONS, programs=["calm", es.cap("angry", 0.1)],
        prompts=PROMPTS[:2], random_directions=1,
    )  # fmt: skip
    works, runner = alone.works(one)
    rows = alone.rows_by_key(runner.run(works))
    assert runner.sharing == "prompts are shared"
    check(one, rows, works, most=40)


def test_many_lengths_few_rows(sweep):
    """Texts that end at different times, prompts of different lengths, three rows at a time."""
    prompts = ["ab " * n + "c" for n in (1, 7, 2, 11, 5, 3, 9)]
    one = sweep(
        metrics=METRICS, prompts=prompts, strengths=(0.3, 0.8), batch_rows=3, batch_tokens=48,
        generation={"max_new_tokens": 20},
    )  # fmt: skip
    works, runner = alone.works(one)
    rows = alone.rows_by_key(runner.run(works))
    lengths = {len(row.tokens) for (_, name), row in rows.items() if name == "text"}
    assert len(lengths) > 3  # they do end at different times
    check(one, rows, works)


def test_windows_follow_one_another(sweep, monkeypatch):
    from emosteer.sweep.engines.local import run

    one = sweep(metrics=METRICS, layers=[[1, 2], 3], positions=["all", "generated"])
    works, runner = alone.works(one)
    expected = alone.rows_by_key(runner.run(works))
    monkeypatch.setattr(run, "WINDOW", 5)
    got = alone.rows_by_key(alone.works(one)[1].run(works))
    assert {k: r.tokens for k, r in got.items()} == {k: r.tokens for k, r in expected.items()}
    assert len(got) == len(works) * 4


MODELS = ("gemma2", "gpt2", "qwen3", "gpt_neox", "mistral", "phi3", "opt", "mixtral", "bloom", "deepseek_v3")


@pytest.mark.parametrize("kind", [*MODELS, "mamba", "recurrent_gemma"])
def test_other_architectures(kind, tok, sweep):
    """Each architecture gives what it gives alone, whether it can be run in pieces or not."""
    model = tiny(kind, vocab_size=len(tok))
    model.config.pad_token_id, model.generation_config.eos_token_id = 0, 2
    one = sweep(
        model=model, bank=random_bank(model), metrics=METRICS, layers=[[1, 2]], positions=["all", "generated"],
        random_directions=1,
    )  # fmt: skip
    works, runner = alone.works(one)
    said = nullcontext() if kind in MODELS else pytest.warns(UserWarning, match="cannot be run in pieces")
    with said:
        rows = alone.rows_by_key(runner.run(works))
    assert runner.sharing.startswith("prompts are shared" if kind in MODELS else "prompts are not shared: ")
    check(one, rows, works)


def test_without_sharing(sweep):
    one = sweep(metrics=METRICS, positions=["all", "generated"])
    works, shared = alone.works(one)
    plain = es.sweep.Runner(one.model, one.tok, one._bank, one.generation, share=False)
    rows = alone.rows_by_key(plain.run(works))
    assert plain.sharing == "share=False was asked for"
    check(one, rows, works)
    for key, row in alone.rows_by_key(shared.run(works)).items():
        assert row.tokens == rows[key].tokens


def test_sampled_text_does_not_depend_on_mates(sweep):
    settings = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 0.95, "top_k": 50}
    one = sweep(metrics=[m.text()], seeds=(0, 1, 2), generation=settings, batch_rows=5)
    works, runner = alone.works(one)
    together = alone.rows_by_key(runner.run(works))
    for work in works[::4]:
        (row,) = next(iter(alone.works(one)[1].run([work])))
        assert row.tokens == together[work.unit.id, "text"].tokens
    plain = es.sweep.Runner(one.model, one.tok, one._bank, one.generation, share=False)
    for key, row in alone.rows_by_key(plain.run(works)).items():
        assert row.tokens == together[key].tokens
    by_seed = {}
    for work in works:
        key = work.unit.prompt.id, work.unit.program_id, work.unit.layers
        by_seed.setdefault(key, set()).add(together[work.unit.id, "text"].tokens)
    assert max(map(len, by_seed.values())) == 3


def test_draws_follow_the_distribution():
    """Twenty thousand draws against the probabilities that temperature, top-k and top-p leave."""
    generation = es.sweep.Generation(max_new_tokens=20000, temperature=0.7, top_k=6, top_p=0.9)
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3)) * 2
    drawn = generation.choose(logits.expand(20000, 12), generation.uniforms(0, [1]))
    p = (logits.double() / 0.7).softmax(0)
    order = p.argsort(descending=True)
    kept = order[:6]
    top = p[kept] / p[kept].sum()
    kept = kept[(top.cumsum(0) - top) < 0.9]
    expected = torch.zeros(12, dtype=torch.float64)
    expected[kept] = p[kept] / p[kept].sum()
    found = torch.bincount(drawn, minlength=12) / 20000
    assert bool((found[expected == 0] == 0).all())
    torch.testing.assert_close(found.double(), expected, atol=0.015, rtol=0)


def test_model_is_left_as_it_was(sweep):
    one = sweep(metrics=METRICS)
    before = {name: dict(module.__dict__) for name, module in one.model.named_modules()}
    ids = torch.tensor([[5, 6, 7]])
    logits = one.model(ids).logits
    works, runner = alone.works(one)
    list(runner.run(works))
    after = {name: dict(module.__dict__) for name, module in one.model.named_modules()}
    assert {k: v.keys() for k, v in after.items()} == {k: v.keys() for k, v in before.items()}
    assert torch.equal(one.model(ids).logits, logits)


def test_left_in_the_middle(sweep):
    """A consumer that stops leaves the model as it was, too."""
    one = sweep(metrics=METRICS)
    works, runner = alone.works(one)
    running = runner.run(works)
    next(running)
    running.close()
    assert all("forward" not in module.__dict__ for module in one.model.modules())


@pytest.mark.model
def test_built_in_model(smollm2):
    model, tok = smollm2
    bank = random_bank(model, scale=20.0)
    one = es.Sweep(
        model, tok=tok, bank=bank, prompts=["Today I went to", *PROMPTS[:1]], programs=["calm", "joyful"],
        strengths=(0.2,), layers=[20], positions=["all", "generated"], random_directions=1,
        metrics=[m.choices([" A", " B", " the park with"])], generation={"max_new_tokens": 8},
    )  # fmt: skip
    one.metrics = (*one.metrics, m.text(), m.perplexity())
    works, runner = alone.works(one)
    rows = alone.rows_by_key(runner.run(works))
    assert runner.sharing == "prompts are shared"
    for work in works:
        expected, tokens = alone.outcome(one, work.unit, (" A", " B", " the park with"))
        assert dict(rows[work.unit.id, "choices"].values) == pytest.approx(expected, abs=2e-3)
        assert rows[work.unit.id, "text"].tokens == tokens
