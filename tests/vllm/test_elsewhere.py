"""Other ways of running an engine, each in a process of its own: the tokens stay what they are."""

import os

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import emosteer as es
from emosteer.vllm import params
from tests.steering.conftest import random_bank


def test_drafts_are_steered_as_what_they_are(engine, elsewhere, bank_file):
    """Texts that repeat themselves, so that drafts are accepted; programs that start at the prompt's end."""
    prompts = [[k, k + 1, k + 2] * 12 for k in range(400, 408)]
    args = [
        params(f"calm +{4 + k}", positions=at) for k, at in enumerate(["all", "generated", "-1:", "0:40"] * 2)
    ]
    speculating = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    found = elsewhere(
        prompts, args, 24, speculative_config=speculating,
        additional_config={"emosteer": {"banks": {"random": str(bank_file)}, "slots": 3}},
    )  # fmt: skip
    assert found["accepted"] > 10
    assert found["tokens"] == [list(one) for one in engine.tokens(prompts, args, 24)]


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes want two processors")
def test_two_processes_with_half_a_model_each(elsewhere, tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1, max_position_embeddings=256,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "model")
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
        prompts, args, 8, model=str(tmp_path / "model"), skip_tokenizer_init=True, tensor_parallel_size=2,
        environment={"VLLM_CPU_OMP_THREADS_BIND": "0|1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        additional_config={"emosteer": {"banks": {"random": str(tmp_path / "bank.safetensors")}}},
    )  # fmt: skip
    for prompt, program, tokens in zip(prompts, programs, found["tokens"]):
        with es.steer(model, bank, program, layers=[1, 2], positions=slice(-1, None)):
            ids = torch.tensor([prompt])
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, min_new_tokens=8,
                eos_token_id=None, do_sample=False, pad_token_id=0,
            )  # fmt: skip
        assert tokens == out[0, len(prompt) :].tolist()
