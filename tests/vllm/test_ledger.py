"""What is kept of readings, against plain loops: passes in chunks, computed again, with drafts that are rejected."""

import random

import numpy as np
import pytest
import torch

import emosteer as es
from emosteer.vllm import params, readings
from emosteer.vllm.asking import Asked
from emosteer.vllm.deployment import Deployment
from emosteer.vllm.ledger import ENTRY, Ledger
from emosteer.vllm.settings import Settings
from emosteer.zscores import ZScores


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    each = lambda *shape: {layer: torch.randn(*shape, generator=generator) for layer in (2, 5)}  # noqa: E731
    return es.Bank(
        ["calm", "angry", "joyful"], each(3, 8), mean=each(8), scale={2: 2.0, 5: 4.0}, projection_mean=each(3),
        projection_std={layer: value.abs() + 0.1 for layer, value in each(3).items()},
    )  # fmt: skip


@pytest.fixture(scope="module")
def deployment(bank, tmp_path_factory):
    path = tmp_path_factory.mktemp("bank") / "b.safetensors"
    bank.save(path)
    return Deployment(Settings.read({"banks": {"b": str(path)}, "readable": "all"}), 8, 8)


def asked(deployment, **what):
    return deployment.reads(Asked.of(params(**what)))


def test_units_are_those_of_a_reading(deployment, bank):
    """z-scores and projections, at several layers: concept by concept within a layer."""
    x = torch.randn(8, dtype=torch.float64)
    for unit in ("z", "projection"):
        reads = asked(deployment, read=["joyful", "calm"], read_layers=[2, 5], read_unit=unit)
        raw = torch.cat([bank.directions[layer][[2, 0]].double() @ x for layer in (2, 5)]).numpy()
        wanted = []
        for layer in (2, 5):
            if unit == "z":
                wanted += ZScores(bank, layer, ["joyful", "calm"])(x.float()[None])[0].tolist()
            else:
                wanted += (
                    bank.directions[layer][[2, 0]].double() @ (x - bank.mean[layer]) / bank.scale[layer]
                ).tolist()
        assert (raw - reads.offset) * reads.scale == pytest.approx(np.array(wanted), rel=1e-4, abs=1e-4)
    assert asked(deployment, read="calm").layers == (5,)  # nearest to two thirds of eight


@pytest.mark.parametrize("at", ["-1:", "all", "generated", "2:9:3", "mask:0010010011"])
@pytest.mark.parametrize("fold", ["each", "sum", "mean", "max"])
def test_each_place_counts_once(deployment, fold, at):
    generator = random.Random(0)
    reads = asked(deployment, read=["calm", "angry"], read_positions=at, read_as=fold, read_unit="projection")
    for _ in range(30):
        prompt, length = generator.randint(1, 9), generator.randint(1, 9)
        truth = np.random.default_rng(0).normal(size=(prompt + length, 2))
        ledger, done, text = Ledger(reads, prompt), 0, prompt
        while text < prompt + length:
            if generator.random() < 0.2:
                done = 0  # preempted
            step = generator.randint(1, text - done)
            drafts = generator.randint(0, 2) if done + step == text else 0
            accepted = generator.randint(0, min(drafts, prompt + length - text - 1))
            places = np.arange(done, done + step + drafts)
            values = np.stack([truth[p] if p < text + accepted else [99.0, 99.0] for p in places])
            done += step
            if done == text:  # it draws a token, and those of the accepted drafts
                done, text = text + accepted, text + accepted + 1
                ledger.take(places, values, text - 1)
            else:
                ledger.take(places, values, text)
        first, stop, by = {"-1:": (prompt - 1, 99, 1), "all": (0, 99, 1), "generated": (prompt, 99, 1)}.get(
            at, (2, 9, 3)
        )
        wanted = list(range(first, min(stop, text - 1), by))
        if at.startswith("mask"):
            wanted = [place for place in (2, 5, 8, 9) if place < text - 1]
        found = readings({"kv_transfer_params": {ENTRY: ledger.plain()}})
        assert found.count == len(wanted)
        rows = truth[wanted].T
        if fold == "each":
            assert found.places == tuple(wanted)
            assert (found.values[0] == rows).all()
        elif wanted or fold == "sum":
            folded = {"sum": np.sum, "mean": np.mean, "max": np.max}[fold](rows, axis=1)
            assert found.values[0] == pytest.approx(folded)
        else:
            assert np.isnan(found.values).all()


def test_an_alarm_is_the_first_reading_above_its_bound(deployment):
    reads = asked(deployment, read="calm", stop_at={"angry": 3.0}, read_layers=[2, 5], read_unit="projection")
    ledger = Ledger(reads, 4)
    quiet = np.zeros((1, 4))
    ledger.take(np.array([3]), quiet, 99)
    loud = np.array([[9.0, 3.0, 9.0, 2.0], [9.0, 2.0, 9.0, 3.5], [0.0, 4.0, 0.0, 4.0]])
    places = np.array([4, 5, 6])
    assert ledger.over(places, loud, 5) is None  # calm has no bound, 3.0 is not above 3.0
    over = {"concept": "angry", "layer": 5, "place": 5, "reading": 3.5}
    assert ledger.over(places, loud) == over
    ledger.take(places, loud, 7)
    assert ledger.alarm == over
    assert ledger.plain()["alarm"] == over
    assert ledger.over(np.array([2]), loud[2:]) is None  # a place that is not read
