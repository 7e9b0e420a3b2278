"""A bank of random directions for the tiny model, and the residual stream as PyTorch's own hooks see it."""

from contextlib import contextmanager

import pytest
import torch

from emosteer.bank import Bank
from emosteer.models.blocks import find_decoder

CONCEPTS = ("calm", "angry", "joyful", "desperate", "proud", "weary")


def random_bank(model, *, seed=0, scale=None):
    """Random directions at every block; the unit of length is that of the model's own stream."""
    decoder = find_decoder(model)
    generator = torch.Generator().manual_seed(seed)
    directions = {
        layer: torch.randn(len(CONCEPTS), decoder.dim, generator=generator) for layer in range(decoder.depth)
    }
    return Bank(CONCEPTS, directions, scale=dict.fromkeys(directions, scale or 2.0))


@contextmanager
def streams(model):
    """The output of each block in the passes run inside, recorded by hooks: `[passes][layer]`."""
    decoder, seen = find_decoder(model), []

    def record(block, args, output):
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        layer = decoder.blocks.index(block)
        if layer == 0:
            seen.append([])
        seen[-1].append(hidden)  # not a copy: what is written in place later shows

    hooks = [block.register_forward_hook(record) for block in decoder.blocks]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def padded(rows, pad=0, side="left"):
    """`(input_ids, attention_mask)` of token lists of different lengths."""
    width = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        fill = [pad] * (width - len(row))
        zeros, ones = [0] * len(fill), [1] * len(row)
        ids.append(fill + row if side == "left" else row + fill)
        mask.append(zeros + ones if side == "left" else ones + zeros)
    return torch.tensor(ids), torch.tensor(mask)


@pytest.fixture
def model(tiny_llama):
    return tiny_llama[0]


@pytest.fixture
def bank(model):
    return random_bank(model)


@pytest.fixture
def prompts():
    """Token lists of different lengths, none of them special tokens."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, 250, (length,), generator=generator).tolist() for length in (7, 3, 11, 5)]
