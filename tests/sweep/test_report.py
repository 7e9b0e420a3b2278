"""Reports: numbers against numpy's and against a known truth, files, and the page in a browser."""

import csv
import json
import math
import re

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import emosteer as es
from emosteer.sweep import Row, Store
from emosteer.sweep.plan import Plan, Prompt, arms_of, with_controls
from emosteer.sweep.report.bootstrap import Bootstrap, expanded_tail, t_quantile
from emosteer.sweep.report.curves import panels
from emosteer.sweep.store.rows import table_of

from ..browser import shown

STRENGTHS = (-0.1, 0.05, 0.1)
SLOPE = {"calm": 3.0, "angry": -2.0, "tired": 0.0}


def units(prompts=12, seeds=(0,), programs=None):
    """The units of a sweep over three concepts, and its plan; no model."""
    generator = torch.Generator().manual_seed(0)
    bank = es.Bank(list(SLOPE), {0: torch.randn(3, 8, generator=generator)}, scale={0: 1.0})
    bank, arms = with_controls(bank, arms_of(bank, programs or list(SLOPE), STRENGTHS))
    some = [Prompt(f"p{n}", f"text {n}", (n + 3,)) for n in range(prompts)]
    plan = Plan("model", bank, some, arms, seeds=seeds, layers=[(0,)])
    return list(plan), plan


def synthetic(noise=0.02, seed=0, **axes):
    """Rows with a known truth: 0.5 + slope · strength, plus what is a prompt's own, plus noise."""
    found, plan = units(**axes)
    rng = np.random.default_rng(seed)
    own = {unit.prompt.label: rng.normal(0, 0.3) for unit in found}
    rows = []
    for unit in found:
        push = 0.0 if math.isnan(unit.arm.strength) else SLOPE.get(unit.arm.concept, 0.0) * unit.arm.strength
        value = 0.5 + own[unit.prompt.label] + push + rng.normal(0, noise)
        rows.append(Row(unit, "agrees", "00" * 8, value, {}))
    return rows, plan


def point(panel, concept, strength):
    curve = next(c for c in panel.curves if c.concept == concept)
    return curve, next(p for p in curve.points if p.strength == strength)


def test_estimates_are_numpys():
    """Means, intervals and paired changes recomputed by plain loops over the same draws."""
    rows, _ = synthetic(seeds=(0, 1))
    (panel,) = panels(table_of(rows), {"agrees": "judge"}, draws=400, seed=7)
    weights = np.random.default_rng(7).multinomial(12, np.full(12, 1 / 12), size=400)
    prompts = sorted({row.unit.prompt.label for row in rows})
    plain = {(r.unit.prompt.label, r.unit.seed): r.value for r in rows if r.unit.arm.control == "unsteered"}
    tail = expanded_tail(12, 0.95)
    for concept in SLOPE:
        for strength in STRENGTHS:
            mine = [r for r in rows if (r.unit.arm.concept, r.unit.arm.strength) == (concept, strength)]
            _, found = point(panel, concept, strength)
            for estimate, value in (
                (found.value, lambda r: r.value),
                (found.change, lambda r: r.value - plain[r.unit.prompt.label, r.unit.seed]),
            ):
                by = [[value(r) for r in mine if r.unit.prompt.label == p] for p in prompts]
                drawn = []
                for w in weights:
                    taken = np.concatenate([by[k] * n for k, n in enumerate(w)])
                    drawn.append(taken.mean())
                low, high = np.quantile(drawn, [tail, 1 - tail])
                assert estimate.mean == pytest.approx(np.mean([value(r) for r in mine]), rel=1e-12)
                assert (estimate.low, estimate.high) == pytest.approx((low, high), rel=1e-9, abs=1e-12)
            assert found.units == 24


def test_intervals_cover_the_truth():
    """95% intervals of 8 prompts cover it in about 95% of sweeps; plain percentiles would in 89%."""
    rng = np.random.default_rng(1)
    bootstrap = Bootstrap(8, draws=1000, seed=0)
    values = rng.normal(0.0, 1.0, (8, 4000))
    found = bootstrap.estimates(values, np.ones_like(values))
    covered = np.mean((found.low <= 0) & (found.high >= 0))
    assert 0.925 <= covered <= 0.975
    plain = np.quantile(bootstrap.weights @ values / 8, [0.025, 0.975], axis=0)
    assert np.mean((plain[0] <= 0) & (plain[1] >= 0)) < covered - 0.02


def test_a_known_sweep():
    """Concepts that push stand apart, with the slope in their interval; one that does not, does not."""
    rows, _ = synthetic()
    (panel,) = panels(table_of(rows), {"agrees": "judge"})
    for concept, slope in SLOPE.items():
        for strength in STRENGTHS:
            curve, found = point(panel, concept, strength)
            assert found.change.low - 0.01 <= slope * strength <= found.change.high + 0.01
            assert found.apart == (slope != 0)
            assert found.random_change.low < 0 < found.random_change.high
            # paired by prompt, a change is far surer than a mean
            assert found.change.high - found.change.low < 0.3 * (found.value.high - found.value.low)
            assert curve.unsteered.mean == pytest.approx(0.5, abs=0.3)
    assert [curve.concept for curve in panel.concepts] == ["calm", "angry", "tired"]


def test_random_band_is_that_of_the_same_program():
    """Each strength, and each program of several directions, has its own random controls."""
    program = es.add("calm", 0.3) + es.cap("angry", 0.0)
    found, _ = units(programs=["calm", program, es.ablate("tired")])
    of = {0.05: 1.0, 0.1: 2.0, -0.1: 3.0}
    rows = []
    for unit in found:
        shape = of.get(unit.arm.strength, 4.0 if "+ " in str(unit.program) else 5.0)
        value = 0.0 if unit.arm.control == "unsteered" else shape if unit.arm.control else 9.0
        rows.append(Row(unit, "m", "00" * 8, value, {}))
    (panel,) = panels(table_of(rows), {})
    for strength, mean in of.items():
        assert point(panel, "calm", strength)[1].random_value.mean == mean
    both = next(c for c in panel.concepts if c.concept == "calm+angry").points[0]
    assert math.isnan(both.strength)
    assert both.random_value.mean == 4.0
    assert next(c for c in panel.concepts if c.concept == "tired").points[0].random_change.mean == 5.0


def test_readings_are_compared_with_the_same_concept_read_elsewhere():
    found, _ = units(prompts=4)
    rows = []
    for unit in found:
        values = {"calm": 0.1, "angry": 0.2, "tired": 0.3}
        if not unit.arm.control:
            values[unit.arm.concept] += 1.0
        rows.append(Row(unit, "reads", "00" * 8, values.get(unit.arm.concept, math.nan), values))
    (panel,) = panels(table_of(rows), {"reads": "readings"})
    for concept, base in (("calm", 0.1), ("angry", 0.2), ("tired", 0.3)):
        curve, top = point(panel, concept, 0.1)
        assert curve.unsteered.mean == pytest.approx(base)
        assert top.random_value.mean == pytest.approx(base)
        assert top.change.mean == pytest.approx(1.0)


def test_failed_rows_and_numbers_that_are_none_do_not_count():
    rows, _ = synthetic(prompts=3)
    spoilt = [r for r in rows if (r.unit.arm.concept, r.unit.arm.strength) == ("calm", 0.1)]
    rows = [r for r in rows if r not in spoilt]
    rows += [Row(spoilt[0].unit, "agrees", "00" * 8, error="ValueError: no")]
    rows += [Row(spoilt[1].unit, "agrees", "00" * 8, math.nan, {}), spoilt[2]]
    (panel,) = panels(table_of(rows), {})
    _, found = point(panel, "calm", 0.1)
    assert (found.units, found.failed) == (1, 1)
    assert found.value.mean == spoilt[2].value
    assert math.isnan(found.value.low)
    assert not found.apart


def test_one_prompt_draws_from_its_seeds():
    rows, _ = synthetic(prompts=1, seeds=tuple(range(6)), noise=0.1)
    (panel,) = panels(table_of(rows), {})
    _, found = point(panel, "angry", 0.1)
    assert found.value.low < found.value.mean < found.value.high


def test_t_quantiles():
    stats = pytest.importorskip("scipy.stats")
    for p in (0.9, 0.975, 0.995):
        for freedom in (1, 2, 5, 7, 20, 1000):
            assert t_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=5e-3)


@pytest.fixture
def folder(tmp_path):
    """A folder on disk of a known sweep, two rows of which failed."""
    rows, plan = synthetic()
    rows[40] = Row(rows[40].unit, "agrees", "00" * 8, error="KeyError: <b>no such</b> & more")
    rows[41] = Row(rows[41].unit, "agrees", "00" * 8, error="KeyError: <b>no such</b> & more")
    store = Store(tmp_path / "sweep")
    with store.running():
        store.write_manifest(
            {
                "definition": {},
                "model": {"name": "synthetic", "revision": None, "id": "model"},
                "units": plan.size,
                "axes": plan.axes(),
                "metrics": {"00" * 8: {"name": "agrees", "kind": "judge"}},
            }
        )
        store.append(rows)
    return tmp_path / "sweep"


def test_files(folder, tmp_path):
    """The command writes page, picture and tables, which agree with the curves."""
    from emosteer.cli import app

    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["sweep", "report", str(folder), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert {path.name for path in out.iterdir()} == {
        "report.html",
        "curves.csv",
        "failures.csv",
        "agrees.png",
    }
    assert (out / "agrees.png").stat().st_size > 10_000
    report = es.Sweep.open(folder).report()
    (panel,) = report.panels
    lines = list(csv.DictReader((out / "curves.csv").open()))
    assert len(lines) == sum(len(curve.points) for curve in panel.curves) == 1 + 4 * 3 + 9
    line = next(r for r in lines if r["concept"] == "calm" and r["strength"] == "0.1")
    _, found = point(panel, "calm", 0.1)
    for kind in ("value", "change", "random_value", "random_change"):
        for end in ("mean", "low", "high"):
            assert float(line[f"{kind}_{end}"]) == pytest.approx(getattr(getattr(found, kind), end), rel=1e-8)
    assert line["apart"] == "1"
    (failure,) = csv.DictReader((out / "failures.csv").open())
    assert (failure["reason"], failure["rows"]) == ("KeyError: <b>no such</b> & more", "2")


def test_page_in_a_browser(folder, tmp_path):
    """Curves are drawn from the embedded numbers; picker, table and failures say the same."""
    report = es.Sweep.open(folder).report(tmp_path / "out")
    page = tmp_path / "out" / "report.html"
    text = page.read_text()
    assert "http" not in text.replace("http://www.w3.org", "")
    embedded = json.loads(re.search(r'type="application/json">(.*?)</script>', text)[1])
    dom = shown(page, tmp_path)
    plot = dom.split('id="plot"')[1].split("</svg>")[0]
    assert plot.count('class="curve"') == 3
    assert plot.count('class="interval"') == 3
    assert plot.count('class="band"') >= 1
    assert dom.count("<td") > 3 * 3 * 10
    assert (
        "KeyError: &lt;b&gt;no such&lt;/b&gt; &amp; more" in dom.split('id="failures"')[1].split("</div>")[0]
    )

    dom = shown(page, tmp_path, "#agrees/layers%200%2C%20all/angry/change")
    plot = dom.split('id="plot"')[1].split("</svg>")[0]
    (line,) = re.findall(r'class="curve"[^>]*points="([^"]*)"', plot)
    drawn = [tuple(map(float, pair.split(","))) for pair in line.split()]
    (panel,) = report.panels
    means = {s: point(panel, "angry", s)[1].change.mean for s in STRENGTHS} | {0.0: 0.0}
    expected = [means[s] for s in sorted(means)]
    assert [x for x, _ in drawn] == pytest.approx(
        [70 + (s + 0.1) / 0.2 * 860 for s in sorted(means)], abs=0.1
    )
    # heights are an affine map of the means
    heights = [y for _, y in drawn]
    slope = (heights[-1] - heights[0]) / (expected[-1] - expected[0])
    assert slope < 0
    assert heights == pytest.approx([heights[0] + slope * (m - expected[0]) for m in expected], abs=0.2)
    assert 'aria-pressed="true"' in dom
    rows = [c["concept"] for c in embedded["panels"][0]["curves"]]
    assert rows == ["calm", "angry", "tired"]


def test_wrong_arguments(folder):
    with pytest.raises(ValueError, match="draws must be an integer of at least 100"):
        es.Sweep.open(folder).report(draws=5)
    with pytest.raises(ValueError, match=r"level must lie in \[0.5, 1\)"):
        es.Sweep.open(folder).report(level=95)


def test_a_sweep_of_a_model(sweep, tmp_path):
    """From the runner to the page: several metrics, places and a program of its own."""
    found = sweep(
        strengths=(0.2, 0.4),
        programs=["calm", "angry", es.cap("calm", 0.0)],
        layers=[[1, 2], [2]],
        metrics=[es.metrics.choices(["A", "B"]), es.metrics.readings(), es.metrics.repetition()],
    ).run(tmp_path / "run", progress=False)
    report = found.report(tmp_path / "out")
    assert {(p.metric, p.layers) for p in report.panels} == {
        (m, layers) for m in ("choices", "readings", "repetition", "text") for layers in ("1,2", "2")
    }
    panel = next(p for p in report.panels if (p.metric, p.layers) == ("choices", "2"))
    assert sorted(c.concept for c in panel.concepts) == ["angry", "calm"]
    table = found.table().to_pylist()
    for strength in (0.2, 0.4):
        curve, top = point(panel, "angry", strength)
        mine = [
            r["value"]
            for r in table
            if (r["metric"], r["concept"], r["strength"], r["layers"]) == ("choices", "angry", strength, [2])
        ]
        assert top.value.mean == pytest.approx(np.mean(mine))
        assert math.isfinite(top.random_change.low)
    plain = [r["value"] for r in table if r["metric"] == "choices" and r["control"] == "unsteered"]
    assert curve.unsteered.mean == pytest.approx(np.mean(plain))
