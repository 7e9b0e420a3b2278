"""`emosteer bench gpu` as far as a CPU can run it."""

import json

import pytest
import torch
from typer.testing import CliRunner

from emosteer.benchmarks import gpu
from tests.ops import interpreter


@pytest.fixture(autouse=True)
def rounding():
    pytest.importorskip("triton")
    interpreter.mend()


def test_every_case_runs_and_its_sides_agree():
    results = gpu.run(dry_run=True)
    cases = {row["case"].split()[0] for row in results}
    assert cases == {
        "steer_", "rms_norm", "steer_rms_norm_", "project", "project_extremes_", "copy", "covariance", "decode",
    }  # fmt: skip
    assert {row["side"] for row in results} >= {"triton", "eager torch", "torch.compile", "torch.cov"}


def test_sides_that_disagree_are_told(monkeypatch):
    from emosteer.benchmarks import baselines

    monkeypatch.setattr(baselines, "project", lambda x, directions: x.float() @ directions.T * 1.01)
    with pytest.raises(RuntimeError, match=r"project 1×64 bfloat16: triton and torch.compile differ by 9.9"):
        gpu.run(dry_run=True, containing="project 1×64 bfloat16")


def test_results_are_written(tmp_path):
    row = gpu._result("copy 1×64", "copy", 256.0, [1e-6, 2e-6, 3e-6, 2e-6])
    assert row["median_us"] == pytest.approx(2.0)
    assert row["gigabytes_per_second"] == pytest.approx(0.128)
    whole, table = gpu.write(tmp_path, [row])
    assert f"torch {torch.__version__}" in table.read_text()
    assert json.loads(whole.read_text())["results"][0]["case"] == "copy 1×64"


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures where there is a GPU")
def test_without_a_gpu():
    from emosteer.cli import app

    done = CliRunner().invoke(app, ["bench", "gpu"])
    assert "torch sees no GPU; --dry-run" in str(done.exception)
