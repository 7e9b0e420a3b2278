"""Real runners killed at random moments: nothing reported done is lost, nothing is counted twice."""

import multiprocessing
import random
import signal
import time

import pyarrow.parquet as pq
import pytest

import emosteer as es

from ..patience import PATIENCE
from . import victim

pytestmark = pytest.mark.xdist_group("kills")
KILLS = {"quick": 8, "rest": 50, "all": 50}


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.sweep.victim"])
    return context


def keys_on_disk(folder):
    """Keys of all rows, read by pyarrow itself from the files that are there; none of them twice."""
    found = []
    for path in sorted(folder.glob("part-*.parquet")):
        table = pq.read_table(path, columns=["unit", "metric_id"])
        found += zip(table["unit"].to_pylist(), table["metric_id"].to_pylist())
    assert len(found) == len(set(found))
    return set(found)


def reported(log):
    lines = log.read_text().splitlines() if log.exists() else []
    return {tuple(line.split()) for line in lines if len(line.split()) == 2 and len(line.split()[1]) == 16}


@pytest.mark.slow
@pytest.mark.scaled
def test_killed_at_random_moments(processes, tmp_path, level):
    expected = victim.sweep().run(tmp_path / "whole", progress=False).table()
    wanted = {(r["unit"], r["metric_id"]): r for r in expected.to_pylist()}
    chance = random.Random(0)
    kills = finished = number = 0
    while kills < KILLS[level] or not finished:
        number += 1
        folder, log = tmp_path / f"killed {number}", tmp_path / f"log {number}"
        while True:
            process = processes.Process(target=victim.run, args=(folder, log))
            process.start()
            # from before the first line of work to the very end
            process.join(chance.uniform(0.0, 1.2) if kills < KILLS[level] else 120)
            if process.is_alive():
                process.kill()
                process.join()
                assert process.exitcode == -signal.SIGKILL
                kills += 1
            on_disk = keys_on_disk(folder)
            assert reported(log) <= on_disk
            assert on_disk <= set(wanted)
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
        finished += 1
        table = es.Sweep.open(folder).table().to_pylist()
        assert len(table) == len(wanted)
        for row in table:
            same = wanted[row["unit"], row["metric_id"]]
            assert row["error"] == same["error"]
            assert row["tokens"] == same["tokens"]
            assert row["value"] == pytest.approx(same["value"], abs=1e-5, nan_ok=True)
        assert not list(folder.glob("_writing-*"))
    assert kills >= KILLS[level]


def test_full_disk(processes, tmp_path):
    """No file may grow beyond 9 kB: the first large part cannot be written, and the error says what to do."""
    folder, log = tmp_path / "full", tmp_path / "log"
    process = processes.Process(target=victim.run_on_a_small_disk, args=(folder, log, 9000))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 0
    said = log.read_text()
    assert said.startswith("FolderError")
    assert "File too large" in said
    assert "make room" in said
    assert "run the sweep again" in said
    assert not list(folder.glob("_writing-*"))
    before = keys_on_disk(folder)
    table = victim.sweep().run(folder, progress=False).table()
    assert before <= {(r["unit"], r["metric_id"]) for r in table.to_pylist()}
    assert len(table) == len(victim.sweep().run(tmp_path / "whole", progress=False).table())


def test_two_runners(processes, tmp_path):
    """The second is refused while the first lives, even stopped, and may run once the first is killed."""
    folder, log = tmp_path / "one", tmp_path / "log"
    first = processes.Process(target=victim.run, args=(folder, log, True))
    first.start()
    try:
        deadline = time.monotonic() + PATIENCE
        while not log.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        refused = rf"is being run by process {first.pid} on .* since .*another folder"
        with pytest.raises(es.sweep.FolderError, match=refused):
            victim.sweep().run(folder, progress=False)
        assert len(es.Sweep.open(folder).table()) > 0  # reading needs no lock
    finally:
        first.kill()
        first.join()
    table = victim.sweep().run(folder, progress=False).table()
    keys = [(r["unit"], r["metric_id"]) for r in table.to_pylist()]
    assert reported(log) <= set(keys)
    assert len(keys) == len(set(keys)) == len(keys_on_disk(folder))


def test_memory_runs_out(processes, tmp_path):
    """An address space that holds no such batches: smaller ones, and every unit is done."""
    folder, log = tmp_path / "little", tmp_path / "log"
    process = processes.Process(target=victim.run_with_little_memory, args=(folder, log, 64 << 20))
    process.start()
    process.join(PATIENCE)
    process.kill()  # does nothing where it has ended
    process.join()
    assert process.exitcode == 0
    tokens, failed = map(int, log.read_text().split())
    assert tokens < 1 << 22
    rows = es.Sweep.open(folder).table().to_pylist()
    assert {row["error"] for row in rows} <= {None, "ValueError: an a"}
    assert failed == sum(row["error"] is not None for row in rows)
