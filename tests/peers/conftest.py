"""Models of two families, and texts of several lengths in pairs."""

import copy

import pytest
import torch

from ..conftest import byte_tokenizer

TEXTS = ["Hello there, my friend!", "He", "The sea was calm that day and the sky clear."]


@pytest.fixture
def tiny_gpt2():
    """`(model, tokenizer)`: 3 random blocks with learned positions and layer norms; padded on the right."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = byte_tokenizer()
    tokenizer.padding_side = "right"
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=256,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return GPT2LMHeadModel(config).eval(), tokenizer


@pytest.fixture
def batch(tiny_llama):
    """Three texts of different lengths, padded on the left, with the position ids that generate would pass."""
    _, tokenizer = tiny_llama
    given = dict(tokenizer(TEXTS, return_tensors="pt", padding=True))
    # The embedding of the pad token is zero, at which some libraries divide by zero: a test of its own.
    given["input_ids"] = given["input_ids"].masked_fill(given["attention_mask"] == 0, 7)
    position = given["attention_mask"].cumsum(1) - 1
    given["position_ids"] = position.masked_fill(given["attention_mask"] == 0, 1)
    return given


@pytest.fixture
def pairs():
    """Contrastive pairs of texts."""
    subjects = [
        "a dog",
        "the old house",
        "my sister and her three friends",
        "rain",
        "this city at night",
        "tea",
    ]
    return [
        (f"I love {s}, it makes me so happy today.", f"I hate {s}, it makes me sad.") for s in subjects * 2
    ]


def double(model):
    """The same model in float64, for the truth."""
    return copy.deepcopy(model).double()
