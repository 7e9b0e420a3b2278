"""What an engine refuses to start with, and what it proves before it answers anything."""

import json
import re

import pytest
import torch

import emosteer as es
from emosteer.models.loading import folder_of

pytest.importorskip("vllm")

from emosteer.vllm import serving, support
from emosteer.vllm.deployment import Deployment
from emosteer.vllm.settings import Settings
from emosteer.vllm.stream import UnknownStream, blocks_of, parts


def test_settings_come_back_as_they_were(bank_file):
    given = {"banks": {"a": str(bank_file)}, "default": "calm +0.1", "layers": [1, 2], "slots": 2}
    given["adapters"] = {"polite": "calm +0.2"}
    settings = Settings.read(given)
    assert Settings.read(settings.plain("x")) == settings
    assert settings.default.program == settings.default_of(None).program == es.add("calm", 0.1)
    assert settings.default_of("polite").program == es.add("calm", 0.2)
    assert settings.default_of("blunt") is settings.default
    assert Settings.of({}) is Settings.of({"other": 1}) is None


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([], "must map names of settings"),
        ({"bank": "x"}, "no setting 'bank'"),
        ({}, "banks must map names to files"),
        ({"banks": {"a": 3}}, "'a': 3"),
        ({"banks": {"a": "b"}, "slots": 0}, "slots must be a number from 1 to 64"),
        ({"banks": {"a": "b"}, "traced": 1}, "traced must be true or false"),
        ({"banks": {"a": "b"}, "default": "calm"}, "does not say what to do"),
        ({"banks": {"a": "b"}, "default": {"x": 1}}, "default must be"),
        ({"banks": {"a": "b"}, "adapters": "calm +1"}, "adapters must map names"),
        ({"banks": {"a": "b"}, "adapters": {"x": "calm"}}, "does not say what to do"),
        ({"banks": {"a": "b"}, "adapters": {"x": None}}, "adapters must map names"),
        ({"banks": {"a": "b"}, "layers": "top"}, "layers must be like"),
    ],
)
def test_settings_that_are_none(given, reason):
    with pytest.raises((TypeError, ValueError), match=reason):
        Settings.read(given)


def test_an_environment_that_is_no_json(monkeypatch):
    monkeypatch.setenv("EMOSTEER_VLLM_CONFIG", "{")
    with pytest.raises(ValueError, match="is not JSON"):
        Settings.in_environment()


def test_banks_that_belong_elsewhere(bank_file):
    settings = Settings.read({"banks": {"a": str(bank_file)}})
    with pytest.raises(ValueError, match="has width 64"):
        Deployment(settings, 30, 64)
    with pytest.raises(ValueError, match="the model has blocks 0 to 9"):
        Deployment(settings, 10, 576)
    with pytest.raises(FileNotFoundError):
        Deployment(Settings.read({"banks": {"a": "/nowhere.safetensors"}}), 30, 576)
    with pytest.raises(ValueError, match="are not those that the engine was started with"):
        Deployment(Settings.read(settings.plain("another digest")), 30, 576)


def test_two_banks_have_units_and_directions_of_their_own(bank, bank_file, tmp_path):
    """A row of the second bank points behind the first one's directions, and to another unit of length."""
    from emosteer.vllm import params
    from emosteer.vllm.asking import Asked

    other = es.Bank(["calm"], {3: torch.randn(1, 576)}, scale={3: 7.0})
    other.save(tmp_path / "other.safetensors")
    both = Deployment(
        Settings.read({"banks": {"a": str(bank_file), "b": str(tmp_path / "other.safetensors")}}), 30, 576
    )
    assert both.directions(3).shape == (len(bank) + 1, 576)
    assert both.units(3).tolist() == [1.0, 2.0, 7.0]
    with pytest.raises(ValueError, match="must say which bank"):
        both.placed(Asked.of(params("calm +1")))
    with pytest.raises(ValueError, match="not in the bank"):
        both.placed(Asked.of(params("calm +1", bank="b", layers=4)))
    words = torch.frombuffer(
        bytearray(both.placed(Asked.of(params("calm +1", bank="b", layers=3))).row), dtype=torch.int32
    )
    assert words[0] == len(bank)
    assert words[both.unit_word] == 2
    assert words[both.unit_word + 1] == 1 << 3


@pytest.mark.parametrize("version", ["0.31.2", "0.33.0", "1.0", "dev"])
def test_another_release_is_refused_by_name(monkeypatch, bank_file, version):
    import vllm
    from vllm.plugins import load_general_plugins

    load_general_plugins()  # as the release that it is
    monkeypatch.setattr(vllm, "__version__", version)
    args = vllm.EngineArgs(model="no/such", additional_config={"emosteer": {"banks": {"a": str(bank_file)}}})
    with pytest.raises(support.Unsupported, match=f"{re.escape(support.RANGE)}, this is {version}"):
        args.create_engine_config()


def test_the_environment_gives_settings_and_the_compile_key_knows_them(
    monkeypatch, bank, bank_file, tmp_path
):
    """The key differs with banks or without, and with other directions in a file of the same name."""
    import vllm

    def made(**further):
        args = vllm.EngineArgs(model=folder_of("smollm2"), dtype="float32", max_model_len=128, **further)
        return args.create_engine_config()

    path = tmp_path / "bank.safetensors"
    settings = {"banks": {"random": str(path)}}
    bank.save(path)
    plain, given = made(), made(additional_config={"emosteer": settings})
    monkeypatch.setenv("EMOSTEER_VLLM_CONFIG", json.dumps(settings))
    assert made().additional_config == given.additional_config
    bank.subset(["calm", "angry"]).save(path)
    other = made()
    assert len({config.compute_hash() for config in (plain, given, other)}) == 3
    assert "emosteer" not in plain.additional_config


def test_the_range_is_what_the_extra_asks_for():
    """One range, in the package's metadata and in the check."""
    from importlib.metadata import requires

    wanted = next(line for line in requires("emosteer") if line.startswith("vllm"))
    assert set(re.findall(r"[<>=]+[\d.]+", wanted.split(";")[0])) == set(support.RANGE.split(","))
    import vllm

    assert support.supported(vllm.__version__)


def test_the_command_checks_what_it_is_given(bank_file):
    banks = {"banks": {"a": str(bank_file)}}
    line = serving.arguments("folder", "name", banks, ["--port", "1"])
    assert line[:2] == ["-m", serving.SERVER]
    with pytest.raises(ValueError, match="--model=x is set by emosteer serve"):
        serving.arguments("folder", "name", banks, ["--model=x"])
    with pytest.raises(FileNotFoundError, match="no bank file"):
        serving.arguments("folder", "name", {"banks": {"a": "/nowhere"}}, [])


def test_ways_of_running_that_are_refused(engine):
    """Each named; the engine's own configuration is none of them."""
    import copy

    config = engine.llm.llm_engine.vllm_config
    support.check(config)
    for where, name, value, reason in [
        ("parallel_config", "enable_dbo", True, "dual-batch overlap"),
        ("parallel_config", "prefill_context_parallel_size", 2, "prefill context"),
        ("parallel_config", "decode_context_parallel_size", 2, "decode context"),
        ("model_config", "runner_type", "pooling", "pooling models"),
        (None, "kv_transfer_config", object(), "from elsewhere"),
    ]:
        changed = copy.copy(config)
        if where is None:
            object.__setattr__(changed, name, value)
        else:
            part = copy.copy(getattr(config, where))
            object.__setattr__(part, name, value)
            object.__setattr__(changed, where, part)
        with pytest.raises(support.Unsupported, match=reason):
            support.check(changed)
    readable = Settings({"random": "x"}, readable=15)
    support.check(config, readable)
    drafting, scheduled = copy.copy(config), copy.copy(config)
    object.__setattr__(drafting, "speculative_config", object())
    support.check(drafting)
    with pytest.raises(support.Unsupported, match="with speculative decoding"):
        support.check(drafting, readable)
    staged = copy.copy(config)
    stages = copy.copy(config.parallel_config)
    object.__setattr__(stages, "pipeline_parallel_size", 2)
    object.__setattr__(staged, "parallel_config", stages)
    support.check(staged)
    with pytest.raises(support.Unsupported, match="with pipeline parallelism"):
        support.check(staged, readable)
    other = copy.copy(config.scheduler_config)
    object.__setattr__(other, "scheduler_cls", Settings)
    object.__setattr__(scheduled, "scheduler_config", other)
    with pytest.raises(support.Unsupported, match="from another scheduler"):
        support.check(scheduled, readable)
    passes = copy.copy(config.compilation_config)
    passes.pass_config = copy.copy(passes.pass_config)
    object.__setattr__(passes.pass_config, "enable_sp", True)
    changed = copy.copy(config)
    object.__setattr__(changed, "compilation_config", passes)
    with pytest.raises(support.Unsupported, match="sequence parallelism"):
        support.check(changed)


def test_a_stream_that_is_not_the_sum_is_refused(engine, monkeypatch):
    """The norm after block 7 reads twice the residual; a block forgets to steer; another steers its neighbour."""
    from emosteer.vllm.probe import prove

    steering = engine.steering
    prove(steering)
    norm = steering.blocks[8].input_layernorm
    own = norm.forward

    def doubled(hidden, residual=None):
        return own(hidden, residual if residual is None else residual * 2)

    with monkeypatch.context() as m:
        m.setattr(norm, "forward", doubled)
        with pytest.raises(
            UnknownStream, match="RMSNorm, which reads what block 7 hands on, does not make hidden"
        ):
            prove(steering)
    with monkeypatch.context() as m:
        m.setattr(steering.blocks[5].emosteer_place, "data", torch.tensor([0, 0, 31], dtype=torch.int32))
        with pytest.raises(UnknownStream, match="a program at block 5 moves the stream by 0 "):
            prove(steering)
    with monkeypatch.context() as m:
        turned = -steering.blocks[6].emosteer_directions
        m.setattr(steering.blocks[6].emosteer_directions, "data", turned)
        with pytest.raises(UnknownStream, match="block 6 moves the stream by .* and misses"):
            prove(steering)
    prove(steering)


def test_a_stage_of_a_pipeline_proves_what_it_is_handed_and_hands_on(engine, monkeypatch):
    """Blocks 10 to 13 as a stage in the middle; then its first norm reads something else, or it hands on a copy."""
    from types import SimpleNamespace

    from vllm.distributed import parallel_state
    from vllm.model_executor.models import llama
    from vllm.sequence import IntermediateTensors

    from emosteer.vllm.probe import prove

    steering, inner = engine.steering, engine.steering.runner.model.model
    stage = range(10, 14)
    between = SimpleNamespace(is_first_rank=False, is_last_rank=False)
    monkeypatch.setattr(parallel_state, "get_pp_group", lambda: between)
    monkeypatch.setattr(llama, "get_pp_group", lambda: between)
    monkeypatch.setattr(inner, "start_layer", stage.start)
    monkeypatch.setattr(inner, "end_layer", stage.stop)
    monkeypatch.setattr(steering, "patched", {layer: steering.patched[layer] for layer in stage})
    prove(steering)
    norm = steering.blocks[stage.start].input_layernorm
    own = norm.forward
    with monkeypatch.context() as m:
        m.setattr(norm, "forward", lambda hidden, residual: own(hidden, residual * 2))
        with pytest.raises(UnknownStream, match="RMSNorm, which reads what the stage before hands on"):
            prove(steering)
    run = inner.forward
    with monkeypatch.context() as m:

        def copied(*args, **kwargs):
            sent = run(*args, **kwargs)
            return IntermediateTensors({name: value.clone() for name, value in sent.tensors.items()})

        m.setattr(inner, "forward", copied)
        with pytest.raises(UnknownStream, match="nobody was seen to read what block 13 hands on"):
            prove(steering)
    with monkeypatch.context() as m:
        m.setattr(
            inner,
            "make_empty_intermediate_tensors",
            lambda **_: IntermediateTensors({"other": torch.ones(2, 2)}),
        )
        m.setattr(
            engine.steering.runner.model,
            "make_empty_intermediate_tensors",
            inner.make_empty_intermediate_tensors,
        )
        with pytest.raises(UnknownStream, match=r"hands \['other'\] from stage to stage"):
            prove(steering)
    prove(steering)


def test_streams_of_another_shape():
    with pytest.raises(UnknownStream, match="block 3 hands on"):
        parts(torch.zeros(1, 2, 3), 3)
    with pytest.raises(UnknownStream, match=r"\['list', "):
        parts(([], torch.zeros(2, 3)), 3)
    with pytest.raises(UnknownStream, match="0 lists of 4 blocks"):
        blocks_of(torch.nn.Linear(2, 2), 4)


def test_an_error_while_rows_are_filled_is_no_unsteered_pass(engine):
    """A request that the worker was never told of ends the pass with an error."""
    with pytest.raises(KeyError):
        engine.steering.begin(["never added"], torch.tensor([0, 1]), torch.zeros(1, dtype=torch.int64), 1)
