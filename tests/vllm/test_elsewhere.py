"""Other ways of running an engine, each with one of its own: the tokens stay what they are."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import emosteer as es
from emosteer.vllm import params
from tests.devices import DEVICES
from tests.steering.conftest import random_bank


def test_drafts_are_steered_as_what_they_are(elsewhere, tmp_path):
    """Texts that repeat themselves, so that drafts are accepted; programs that start at the prompt's end."""
    model = tiny(tmp_path / "model")
    bank = random_bank(model)
    bank.save(tmp_path / "bank.safetensors")
    prompts = [[k, k + 1, k + 2] * 12 for k in range(400, 408)]
    programs = [es.add("calm", 1.0 + k / 4) for k in range(8)]
    positions = ["all", "generated", slice(-1, None), slice(0, 40)] * 2
    speculating = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    found = elsewhere(
        prompts, [params(one, layers=[1, 2], positions=at) for one, at in zip(programs, positions)], 24,
        model=str(tmp_path / "model"), skip_tokenizer_init=True, speculative_config=speculating,
        additional_config={"emosteer": {"banks": {"random": str(tmp_path / "bank.safetensors")}}},
    )  # fmt: skip
    assert found["accepted"] > 10
    unsteered = 0
    for prompt, program, at, tokens in zip(prompts, programs, positions, found["tokens"]):
        assert tokens == greedy(model, bank, program, prompt, at, 24)
        unsteered += tokens == greedy(model, bank, None, prompt, length=24)
    assert unsteered < 4


@pytest.mark.skipif(DEVICES < 2, reason="two processes want two devices")
def test_two_processes_with_half_of_the_blocks_each(elsewhere, tmp_path):
    """Steered on both sides of the cut. Half of each block: `tests/sweep/test_vllm.py`."""
    model = tiny(tmp_path / "model")
    bank = random_bank(model)
    bank.save(tmp_path / "bank.safetensors")
    prompts = [torch.randint(5, 900, (length,)).tolist() for length in (3, 9, 30, 9)]
    programs = [
        es.add("calm", 4.0),
        None,
        es.ablate("angry") + es.add("joyful", -3.0),
        es.rotate("proud", 50),
    ]
    args = [None if one is None else params(one, layers=[1, 2], positions="-1:") for one in programs]
    found = elsewhere(
        prompts, args, 8, model=str(tmp_path / "model"), skip_tokenizer_init=True, pipeline_parallel_size=2,
        environment={
            "VLLM_CPU_OMP_THREADS_BIND": "0|1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
            "VLLM_CPU_CI_ENV": "0",  # a second stage waits for buffers that vLLM makes as it warms up
        },
        compilation_config={"backend": "eager"},
        additional_config={"emosteer": {"banks": {"random": str(tmp_path / "bank.safetensors")}}},
    )  # fmt: skip
    for prompt, program, tokens in zip(prompts, programs, found["tokens"]):
        assert tokens == greedy(model, bank, program, prompt, slice(-1, None))


def test_an_adapter_has_a_default_of_its_own(anew, tmp_path):
    """What a request does that does not say: its adapter's program, the engine's where it has none or no adapter."""
    model = tiny(tmp_path / "model")
    bank = random_bank(model)
    bank.save(tmp_path / "bank.safetensors")
    merged = {
        None: model,
        "polite": adapted(model, tmp_path / "polite", 1),
        "blunt": adapted(model, tmp_path / "blunt", 2),
    }
    usual = {"default": es.add("calm", 4.0), "polite": es.add("joyful", 4.0)}
    requests = [  # adapter, what it says, what it does
        (None, None, usual["default"]),
        ("polite", None, usual["polite"]),
        ("blunt", None, usual["default"]),
        ("polite", es.ablate("angry"), es.ablate("angry")),
        ("polite", "none", None),
        (None, "none", None),
    ]
    prompts = [[7, 8, 9, 10 + k] for k in range(len(requests))]
    found = anew(
        prompts,
        [None if said is None else params(said, layers=[1, 2]) for _, said, _ in requests],
        8,
        adapters=[None if name is None else [name, str(tmp_path / name)] for name, _, _ in requests],
        model=str(tmp_path / "model"), skip_tokenizer_init=True, enable_lora=True, max_loras=4, max_lora_rank=8,
        additional_config={
            "emosteer": {
                "banks": {"random": str(tmp_path / "bank.safetensors")},
                "default": params(usual["default"], layers=[1, 2]),
                "adapters": {"polite": params(usual["polite"], layers=[1, 2])},
            }
        },
    )  # fmt: skip
    wanted = [greedy(merged[name], bank, does, prompt) for (name, _, does), prompt in zip(requests, prompts)]
    assert found["tokens"] == wanted


def adapted(model, folder, seed):
    """An adapter of `q_proj` and `o_proj` in PEFT's files, and the model that has it merged."""
    whole = copy.deepcopy(model)
    generator, weights = torch.Generator().manual_seed(seed), {}
    for name, module in whole.named_modules():
        if name.endswith(("q_proj", "o_proj")):
            rows, columns = module.weight.shape
            a, b = (torch.randn(shape, generator=generator) * 0.1 for shape in ((8, columns), (rows, 8)))
            weights |= {
                f"base_model.model.{name}.lora_A.weight": a,
                f"base_model.model.{name}.lora_B.weight": b,
            }
            with torch.no_grad():
                module.weight += b @ a
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "o_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return whole


def tiny(folder):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1, max_position_embeddings=256,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


def greedy(model, bank, program, prompt, positions="all", length=8):
    """What transformers writes under a program at two layers."""
    ids = torch.tensor([prompt])
    with es.steer(model, bank, program, layers=[1, 2], positions=positions):
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, min_new_tokens=length,
            eos_token_id=None, do_sample=False, pad_token_id=0,
        )  # fmt: skip
    return out[0, len(prompt) :].tolist()
