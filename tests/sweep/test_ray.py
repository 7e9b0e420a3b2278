"""The Ray engine on a cluster of two nodes in this machine: the rows of the local engine, whoever dies."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import deque
from unittest.mock import Mock

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import emosteer as es
from emosteer.cli import app, main
from emosteer.sweep import Row, Store
from emosteer.sweep.engines.ray.cluster import Placement
from emosteer.sweep.engines.ray.driver import _Driver, _Held, written_by
from emosteer.sweep.engines.ray.tasks import Task
from emosteer.sweep.engines.ray.worker import Broken, Worker
from emosteer.sweep.engines.vllm.server import Ended
from emosteer.sweep.engines.work import Work

from ..patience import PATIENCE
from . import victim

pytestmark = pytest.mark.xdist_group("ray")
ray = pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of two processors; no dashboard, no usage reports.

    Workers are no nicer than the tests that run beside them, behind which Ray's niceness (15) has them starve.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (so Ray spells it)
    from ray.cluster_utils import Cluster

    node = dict(num_cpus=2, include_dashboard=False, object_store_memory=80 << 20)
    found = Cluster(initialize_head=True, head_node_args=node)
    found.add_node(num_cpus=2, object_store_memory=80 << 20, resources={"second": 2})
    ray.init(address=found.address, log_to_driver=False, configure_logging=False)
    yield found
    ray.shutdown()
    found.shutdown()


def patient(text):
    time.sleep(0.03)
    return victim.judge(text)


def sweep(**changed):
    """The victim's sweep, slow enough for two workers to share it."""
    metrics = [es.metrics.choices(["A", "B"]), es.metrics.judge(patient, version="1")]
    return victim.sweep(**{"metrics": metrics, **changed})


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """What one process finds, by unit and metric."""
    table = sweep().run(tmp_path_factory.mktemp("local"), progress=False).table()
    return {(row["unit"], row["metric_id"]): row for row in table.to_pylist()}


def workers():
    """Processes of workers, of the nodes that this process started."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if child.cmdline()[:1] and child.cmdline()[0].startswith("ray::Worker"):
                found.append(child)
        except psutil.Error:
            continue
    return found


def assert_same(folder, local):
    """The rows of the local engine, on disk each once."""
    table = es.Sweep.open(folder).table().to_pylist()
    assert {(row["unit"], row["metric_id"]) for row in table} == set(local)
    for row in table:
        same = local[row["unit"], row["metric_id"]]
        assert row["error"] == same["error"]
        assert row["tokens"] == same["tokens"]
        assert row["value"] == pytest.approx(same["value"], abs=1e-5, nan_ok=True)
    files = [pq.read_table(path) for path in folder.glob("part-*.parquet")]
    assert sum(map(len, files)) == len(table)


def test_same_rows_as_local(cluster, local, tmp_path):
    """Several workers on both nodes; and a second run has nothing to do."""
    found = sweep().run(tmp_path / "ray", "ray", num_workers=3, units_per_task=9, progress=False)
    assert_same(tmp_path / "ray", local)
    writers = {name.rsplit("-", 1)[0] for name in found.store.parts()}
    assert 2 <= len(writers) <= 3  # the third may come too late
    before = found.store.parts()
    sweep().run(tmp_path / "ray", "ray", num_workers=1, progress=False)
    assert found.store.parts() == before


@pytest.mark.slow
@pytest.mark.scaled
def test_killed_in_the_middle(cluster, local, tmp_path, level):
    """Worker after worker is killed while it works; nothing is missing, nothing is there twice."""
    folder, over, killed, kills = tmp_path / "ray", threading.Event(), [], 1 if level == "quick" else 2

    def kill():
        seen = 0
        while not over.is_set() and len(killed) < kills:
            parts = len(list(folder.glob("part-*.parquet"))) if folder.exists() else 0
            if parts > seen and (alive := workers()):
                seen = parts
                alive[len(killed) % len(alive)].send_signal(signal.SIGKILL)
                killed.append(parts)
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        sweep().run(folder, "ray", num_workers=2, units_per_task=5, progress=False)
    finally:
        over.set()
        killer.join()
    assert len(killed) == kills
    assert_same(folder, local)


def deadly(prompt, text):
    if prompt == "number 7 is":
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


@pytest.mark.slow
@pytest.mark.full
def test_a_unit_that_kills_its_worker_is_given_up(cluster, tmp_path):
    """It becomes failed rows that say so; its neighbours are run."""
    one = sweep(
        prompts=["number 6 is", "number 7 is", "number 8 is"],
        programs=["calm"],
        strengths=(0.2,),
        controls=[],
        metrics=[es.metrics.judge(deadly, version="1")],
    )
    folder = tmp_path / "ray"
    one.run(folder, "ray", num_workers=1, units_per_task=4, progress=False)
    rows = es.Sweep.open(folder).table().to_pylist()
    assert len(rows) == 3 * 2
    for row in rows:
        if row["prompt_text"] == "number 7 is":
            assert "workers died over it" in row["error"]
        else:
            assert row["error"] is None


def test_what_a_lost_worker_had_written(tmp_path):
    """Its parts count, those of a worker whose number begins alike do not."""
    units = list(sweep().plan())[:3]
    store = Store(tmp_path)
    for run_id, unit in (("r.0001", units[0]), ("r.0001", units[1]), ("r.00011", units[2])):
        store.run_id = run_id
        store.append([Row(unit, "m", "00" * 8, 1.0), Row(unit, "n", "01" * 8, error="E: no")])
    assert written_by(store, "r.0001") == {units[0].id: 1, units[1].id: 1}


def test_a_worker_whose_vllm_has_ended(tmp_path):
    """It keeps what was finished, and the driver takes another worker for the rest."""
    works = [Work(unit, (es.metrics.repetition(),)) for unit in list(sweep().plan())[:3]]

    def ended(_works):
        yield [Row(works[0].unit, "m", "00" * 8, 1.0)]
        raise Ended("its process is gone")

    worker = object.__new__(Worker)
    worker._metrics, worker._runner = Mock(unpacked=Mock(return_value=works)), Mock(run=ended)
    worker._store = Store(tmp_path)
    worker._store.run_id = "r.0001"
    told = worker.run([], {})
    assert told == Broken("its process is gone")

    ray = Mock(get=Mock(return_value=told))
    tasks, progress = Mock(back=deque()), Mock()
    driver = _Driver(ray, Mock(), Placement(workers=1), tasks, Store(tmp_path), progress, 2)
    held = _Held(Mock(), "r.0001", True, [("ref", Task(works))])
    driver.workers, driver.waiting = [held], {"ref": held}
    driver._come("ref", held)
    assert [(task.works, task.lost) for task in tasks.back] == [(works[1:], 1)]
    assert progress.saved.call_args.args == (1, 0)
    ray.kill.assert_called_once_with(held.actor)
    assert held not in driver.workers
    assert len(driver.workers) == 1


@pytest.mark.full
def test_placement(cluster, local, tmp_path):
    """Further resources say on which node; workers wait for room, and no room at all is an error."""
    one = sweep()
    one.run(tmp_path / "ray", "ray", resources={"second": 1}, cpus_per_worker=1, progress=False)
    assert_same(tmp_path / "ray", local)
    with pytest.raises(ValueError, match="no node of the Ray cluster has room for a worker of .*'GPU': 1"):
        one.run(tmp_path / "gpu", "ray", gpus_per_worker=1, progress=False)


@pytest.mark.parametrize(("there", "said"), [([], 1), ([{"Alive": False, "Resources": {"CPU": 4}}], 1),
                                             ([{"Alive": True, "Resources": {"CPU": 4}}], 0)])  # fmt: skip
def test_a_cluster_that_has_lost_all_room(there, said):
    """It is told once, however long the run waits; that a worker takes long to load its model is not told."""
    silent = Mock()
    silent.nodes.return_value = there
    silent.wait.side_effect = [([], []), ([], []), ([], []), KeyboardInterrupt]
    driver = _Driver(silent, Mock(), Placement(workers=1), Mock(back=[1]), Mock(run_id="r"), Mock(), 2)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with pytest.raises(KeyboardInterrupt):
            driver.run(1)
    assert sum("the sweep waits until a node joins" in str(one.message) for one in heard) == said


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"num_workers": 0}, "num_workers must be an integer of at least 1 or None, got 0"),
        ({"cpus_per_worker": -1}, "cpus_per_worker must be a number of at least 0"),
        ({"resources": {"x": "y"}}, r"resources\['x'\] must be a number"),
        ({"in_flight": 0}, "in_flight must be an integer of at least 1"),
        ({"vllm": True}, "vllm must map names of arguments of vllm.EngineArgs to values .* got True"),
        ({"units_per_task": True}, "units_per_task must be an integer of at least 1"),
    ],
)
def test_wrong_arguments(tmp_path, wrong, error):
    with pytest.raises(ValueError, match=error):
        sweep().run(tmp_path / "ray", "ray", progress=False, **wrong)


COMMAND = [sys.executable, "-c", "from emosteer.cli import main; main()", "sweep"]


@pytest.mark.full
def test_the_commands(cluster, tmp_path):
    """`run` reaches the cluster at its address, `resume` goes on there: the rows of the local engine."""
    one = victim.sweep()
    one.model.save_pretrained(tmp_path / "model")
    one.tok.save_pretrained(tmp_path / "model")
    one.bank.save(tmp_path / "bank.safetensors")
    definition = dict(
        model=str(tmp_path / "model"),
        bank="bank.safetensors",
        prompts=[f"number {n} is" for n in range(6)],
        strengths=[0.2],
        layers=[[0]],
        metrics=[{"choices": ["A", "B"]}],
    )
    (tmp_path / "sweep.yaml").write_text(json.dumps(definition))
    table = es.Sweep.from_yaml(tmp_path / "sweep.yaml").run(tmp_path / "local", progress=False).table()
    local = {(row["unit"], row["metric_id"]): row for row in table.to_pylist()}
    folder = tmp_path / "ray"
    given = ["--engine", "ray", "--address", cluster.address, "--units-per-task", "5", "--num-workers", "2"]
    given += [
        "--cpus-per-worker",
        "1",
        "--gpus-per-worker",
        "0",
        "--resource",
        "second=1",
        "--in-flight",
        "1",
    ]
    first = subprocess.run(
        [*COMMAND, "run", tmp_path / "sweep.yaml", folder, *given],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert first.returncode == 0, first.stderr
    assert_same(folder, local)
    parts = sorted(folder.glob("part-*.parquet"))
    assert len(parts) >= len(table) // 5  # no part has more than a task
    parts[0].unlink()
    again = CliRunner().invoke(app, ["sweep", "resume", str(folder), *given])  # this process is connected
    assert again.exit_code == 0, again.output
    assert_same(folder, local)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (["--num-workers", "2"], "--num-workers is for --engine ray, the engine is 'local'"),
        (["--resource", "second=1"], "--resource is for --engine ray"),
        (
            ["--engine", "ray", "--resource", "second"],
            "--resource must be a name and a number, .*got 'second'",
        ),
        (["--engine", "ray", "--num-workers", "0"], "--num-workers"),
        (["--engine", "ray", "--gpus-per-worker", "-1"], "--gpus-per-worker"),
    ],
)
def test_wrong_options(tmp_path, monkeypatch, capsys, given, error):
    """Told before anything is loaded."""
    for command in (["run", str(tmp_path / "no.yaml")], ["resume"]):
        monkeypatch.setattr("sys.argv", ["emosteer", "sweep", *command, str(tmp_path), *given])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        assert re.search(error, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("address", "kind", "error"),
    [
        ("127.0.0.1:1", ConnectionError, "no Ray cluster answers at address '127.0.0.1:1'"),
        ("ray://127.0.0.1:1", ConnectionError, "no Ray cluster answers at address 'ray://127.0.0.1:1'"),
        ("nonsense", ValueError, "address must be \"auto\", host:port or ray://host:port, got 'nonsense'"),
    ],
)
def test_no_cluster_at_an_address(monkeypatch, address, kind, error):
    """Said at once; Ray itself tries for minutes and then leaves the process."""
    from emosteer.sweep.engines.ray.cluster import connected

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(kind, match=error), connected(address):
        pass
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(kind, match=error), connected(None):
        pass


def test_nobody_elses_cluster_is_joined(cluster, monkeypatch):
    """Without an address a sweep has a cluster of its own, whoever else has started one on this machine."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    code = (
        "from emosteer.sweep.engines.ray.cluster import connected\n"
        "with connected(None) as ray: print(ray.get_runtime_context().gcs_address)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] != cluster.address


def test_a_worker_that_cannot_begin(cluster, tmp_path):
    """Its reason is the run's."""
    one = sweep()
    runner = one.runner()
    runner.bank = None
    one.runner = lambda: runner
    with pytest.raises(Exception, match="bank|NoneType"):
        one.run(tmp_path / "ray", "ray", num_workers=1, progress=False)


def test_tasks_follow_the_speed():
    from emosteer.sweep.engines.ray.tasks import FIRST, Tasks

    tasks = Tasks(iter(range(10**6)), 10**6, 10)
    assert len(tasks.next().works) == FIRST
    tasks.took(100, 1.0)
    assert len(tasks.next().works) == 200  # two seconds at first
    tasks.taken = 10**6 - 100
    assert len(tasks.next().works) == 5  # the end is shared out
    many = Tasks(iter(range(10**6)), 10**6, 1000)
    many.took(100, 1.0)
    assert many.duration() == 50.0  # so that a thousand workers write 20 parts a second


def test_without_ray(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "emosteer\[ray\]"'):
        sweep().run(tmp_path / "ray", "ray", progress=False)
