"""The folder: what is done is not done again, what is broken is named, and other tools read it as it is."""

import json
import warnings

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import emosteer as es
from emosteer.sweep import FolderError, Store

m = es.metrics


def keys(table):
    return sorted(zip(table["unit"].to_pylist(), table["metric_id"].to_pylist()))


def passes_of(model, run):
    """How many forward passes happen in `run()`."""
    count = []
    hook = model.register_forward_pre_hook(lambda *_: count.append(1))
    try:
        run()
    finally:
        hook.remove()
    return len(count)


def test_one_row_a_unit_and_metric(sweep, tmp_path):
    one = sweep(metrics=[m.choices(["A", "B"]), m.repetition()])
    table = one.run(tmp_path / "a", progress=False).table()
    units = list(one.plan())
    assert len(table) == 3 * len(units)  # the text is a metric of its own
    assert len(set(keys(table))) == len(table)
    assert set(table["metric"].to_pylist()) == {"choices", "repetition", "text"}
    assert set(table["control"].to_pylist()) == {"", "random", "unsteered"}
    assert table.schema.field("value").type == pa.float64()
    assert keys(es.Sweep.open(tmp_path / "a").table()) == keys(table)


def test_again_runs_nothing(sweep, model, tmp_path):
    one = sweep()
    table = one.run(tmp_path / "a", progress=False).table()
    parts = Store(tmp_path / "a").parts()
    again = sweep()
    assert passes_of(model, lambda: again.run(tmp_path / "a", progress=False)) == 0
    assert Store(tmp_path / "a").parts() == parts
    assert es.Sweep.open(tmp_path / "a").table().equals(table)


def test_changed_metric_generates_nothing_again(sweep, model, tmp_path):
    """Metrics of text use the text that is kept; of likelihoods, only the missing ones are run."""
    sweep(metrics=[m.text(), m.choices(["A", "B"])]).run(tmp_path / "a", progress=False)
    changed = sweep(metrics=[m.choices(["A", "B"]), m.regex("e"), m.repetition(2)])
    assert passes_of(model, lambda: changed.run(tmp_path / "a", progress=False)) == 0
    table = es.Sweep.open(tmp_path / "a").table()
    assert table.filter(pa.compute.equal(table["metric"], "regex"))["status"].to_pylist().count("ok") == len(
        list(changed.plan())
    )
    fresh = changed.run(tmp_path / "b", progress=False).table()
    rows = {(r["unit"], r["metric"]): r["value"] for r in table.to_pylist()}
    assert rows == {(r["unit"], r["metric"]): r["value"] for r in fresh.to_pylist()}


def test_table_shows_the_present_definition(sweep, tmp_path):
    sweep(metrics=[m.choices(["A", "B"])]).run(tmp_path / "a", progress=False)
    sweep(metrics=[m.choices(["A", "C"])], prompts=["hello there, ", "new"]).run(
        tmp_path / "a", progress=False
    )
    opened = es.Sweep.open(tmp_path / "a")
    table = opened.table()
    assert set(table["prompt_text"].to_pylist()) == {"hello there, ", "new"}
    assert len(table) == opened.manifest["units"] == opened.status().done
    assert len(opened.table(everything=True)) == len(table) + len(list(sweep().plan()))


@pytest.mark.parametrize(
    "change",
    [
        {"strengths": (0.5,)},
        {"layers": [[1, 3]]},
        {"positions": "generated"},
        {"seeds": (1,)},
        {"relative": True},
    ],
    ids=str,
)
def test_units_are_hashed_from_what_determines_them(sweep, bank, change):
    before = {unit.id for unit in sweep().plan() if not unit.arm.control}
    assert before == {unit.id for unit in sweep().plan() if not unit.arm.control}
    assert not before & {unit.id for unit in sweep(**change).plan() if not unit.arm.control}


def test_weights_and_directions_are_hashed(sweep, model, bank):
    before = [unit.id for unit in sweep().plan()]
    weight = model.model.layers[1].mlp.up_proj.weight
    kept = weight[3, 5].item()
    weight.data[3, 5] += 1e-6 + abs(kept) * 1e-6
    assert not set(before) & {unit.id for unit in sweep().plan()}
    weight.data[3, 5] = kept
    assert before == [unit.id for unit in sweep().plan()]
    changed = {layer: v.clone() for layer, v in bank.directions.items()}
    changed[1][bank.index("calm")] = changed[1][bank.index("angry")] * -1
    other = es.Bank(bank.names, changed, scale=bank.scale)
    after = {unit.id: unit for unit in sweep(bank=other).plan()}
    gone = [unit.arm.concept for unit in sweep().plan() if unit.id not in after]
    assert set(gone) == {"calm"}


def test_failed_rows_say_why_and_can_be_retried(sweep, tmp_path):
    broken = [True]

    def moody(text):
        if broken[0]:
            raise RuntimeError("not today")
        return 1.0

    def one():
        return sweep(metrics=[m.judge(moody, version="1"), m.choices(["A", "B"])])

    state = one().run(tmp_path / "a", progress=False).status()
    units = len(list(one().plan()))
    assert state.failed == units
    assert state.reasons == (("RuntimeError: not today", units),)
    assert state.done == units
    broken[0] = False
    assert one().run(tmp_path / "a", progress=False).status().failed == units  # kept unless asked
    retried = one().run(tmp_path / "a", progress=False, retry_failed=True)
    assert retried.status().failed == 0
    assert len(set(keys(retried.table()))) == len(retried.table())
    raw = pq.read_table(tmp_path / "a")
    assert len(raw) == len(retried.table())


@pytest.mark.parametrize("where", ["end", "middle", "start", "empty"])
def test_broken_parts_are_named_and_run_again(sweep, tmp_path, where):
    folder = tmp_path / "a"
    table = sweep().run(folder, progress=False, flush_seconds=0.0).table()
    parts = Store(folder).parts()
    assert len(parts) > 1
    path = folder / parts[0]
    content = bytearray(path.read_bytes())
    if where == "end":
        del content[-7:]
    elif where == "empty":
        content.clear()
    else:
        content[len(content) // 3 if where == "middle" else 30] ^= 0xFF
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=f"{parts[0]} is .*: left out"):
        assert len(es.Sweep.open(folder).table()) < len(table)
    with pytest.warns(UserWarning, match=f"{parts[0]} is .* moved to _set_aside/; what it held runs again"):
        again = sweep().run(folder, progress=False).table()
    assert keys(again) == keys(table)
    assert (folder / "_set_aside" / parts[0]).read_bytes() == bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert keys(es.Sweep.open(folder).table()) == keys(table)


def test_foreign_parts_are_set_aside(sweep, tmp_path):
    folder = tmp_path / "a"
    table = sweep().run(folder, progress=False).table()
    pq.write_table(pa.table({"unit": ["x"], "value": [1.0]}), folder / "part-0.parquet")
    pq.write_table(pa.table({"a": [1]}), folder / "mine.parquet")
    with pytest.warns(UserWarning, match="not written by a sweep"):
        again = sweep().run(folder, progress=False)
    assert sorted(p.name for p in (folder / "_set_aside").iterdir()) == ["mine.parquet", "part-0.parquet"]
    assert keys(again.table()) == keys(table)


def test_rows_written_twice_count_once(sweep, tmp_path):
    """Two runners that met in spite of all; a row that did not fail counts before one that did."""
    one = sweep()
    one.run(tmp_path / "a", progress=False)
    one.run(tmp_path / "b", progress=False)
    (part,) = Store(tmp_path / "b").parts()
    table = pq.read_table(tmp_path / "b" / part)
    failed = table.set_column(2, "status", pa.array(["failed"] * len(table)))
    pq.write_table(failed.cast(table.schema), tmp_path / "a" / "part-later.parquet")
    found = es.Sweep.open(tmp_path / "a").table()
    assert len(found) == len(table)
    assert set(found["status"].to_pylist()) == {"ok"}


def test_other_tools_read_the_folder(sweep, tmp_path):
    pandas, polars, duckdb = (pytest.importorskip(name) for name in ("pandas", "polars", "duckdb"))
    folder = tmp_path / "a"
    table = (
        sweep(metrics=[m.choices(["A", "B"]), m.text()])
        .run(folder, progress=False, flush_seconds=0.0)
        .table()
    )
    assert len(Store(folder).parts()) > 1
    mean = sum(table["value"].to_pylist()) / len(table)
    frame = pandas.read_parquet(folder)
    assert len(frame) == len(table)
    assert frame["value"].mean() == pytest.approx(mean)
    assert polars.read_parquet(folder / "part-*.parquet")["value"].mean() == pytest.approx(mean)
    ((got,),) = duckdb.sql(f"select avg(value) from '{folder}/part-*.parquet'").fetchall()
    assert got == pytest.approx(mean)


@pytest.mark.parametrize("url", ["memory://sweeps/a", "file://{tmp}/a"])
def test_urls(sweep, model, tmp_path, url):
    url = url.format(tmp=tmp_path)
    one = sweep(metrics=[m.choices(["A", "B"]), m.repetition()])
    table = one.run(url, progress=False, flush_seconds=0.0).table()
    assert keys(table) == keys(one.run(tmp_path / "local", progress=False).table())
    assert passes_of(model, lambda: one.run(url, progress=False)) == 0
    if url.startswith("memory"):
        import fsspec

        fs = fsspec.filesystem("memory")
        names = [name.rsplit("/", 1)[-1] for name in fs.ls("/sweeps/a", detail=False)]
        assert not [name for name in names if name.startswith("_writing-") or name == "_lock"]
        part = next(name for name in names if name.startswith("part-"))
        fs.pipe_file(f"/sweeps/a/{part}", fs.cat_file(f"/sweeps/a/{part}")[:-9])
        with pytest.warns(UserWarning, match="moved to _set_aside"):
            assert keys(one.run(url, progress=False).table()) == keys(table)
        assert fs.exists(f"/sweeps/a/_set_aside/{part}")


def test_remote_lease(sweep, monkeypatch):
    """A lease that is being renewed refuses; one left behind is taken over; a lost one stops the runner."""
    import time

    from emosteer.sweep.store import lock

    url = "memory://sweeps/lease"
    store = Store(url)
    with store.running():
        with pytest.raises(FolderError, match=r"is being run by process \d+ on"):
            sweep().run(url, progress=False)
        holder = json.loads(store.place.read("_lock"))
        store.place.write("_lock", json.dumps({**holder, "renewed": time.time() - 1000}).encode())
        sweep().run(url, progress=False)
    assert "_lock" not in store.place.names()
    monkeypatch.setattr(lock, "RENEWED_EVERY", 0.01)
    with store.running():
        other = {"process": 1, "host": "elsewhere", "since": "now", "owner": "o", "renewed": time.time()}
        store.place.write("_lock", json.dumps(other).encode())
        time.sleep(0.2)
        with pytest.raises(FolderError, match="is being run by process 1 on elsewhere"):
            store.write_manifest({})
    store.place.delete("_lock")


def test_a_folder_of_something_else(sweep, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FolderError, match=r"holds other files \(notes.txt\); give a new or empty folder"):
        sweep().run(tmp_path, progress=False)
    with pytest.raises(FolderError, match="is a file"):
        sweep().run(tmp_path / "notes.txt", progress=False)
    with pytest.raises(FileNotFoundError, match="no folder of a sweep"):
        es.Sweep.open(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder of a sweep"):
        es.Sweep.open(tmp_path / "nowhere")


def test_manifest_of_another_format(sweep, tmp_path):
    sweep().run(tmp_path / "a", progress=False)
    path = tmp_path / "a" / "_manifest.json"
    content = json.loads(path.read_text())
    assert content["versions"]["torch"]
    path.write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(FolderError, match="format 99, this version of emosteer reads 1"):
        es.Sweep.open(tmp_path / "a")
    path.write_text("{")
    with pytest.raises(FolderError, match="damaged"):
        es.Sweep.open(tmp_path / "a")
