"""A model of two blocks, and a decoding loop of one's own to compile it in."""

import pytest
import torch

import emosteer as es

from ..conftest import padded, random_bank

POSITIONS = ["all", "prompt", "generated", slice(2, 9), slice(-1, None), slice(0, None, 2), slice(-3, -1)]
PROGRAMS = [es.add("calm", 0.3), None, es.cap("angry", 0.0) + es.hold("weary", 0.2), es.rotate("proud", 20)]
STEPS = 3
ROOM = 24


@pytest.fixture(autouse=True)
def afresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def model(tiny_llama):
    """Two blocks: compiling is what takes the time here."""
    model = tiny_llama[0]
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2
    return model


@pytest.fixture
def follow():
    """What the decoding steps are fed, `[4, STEPS]`."""
    return torch.randint(5, 250, (4, STEPS), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def mask():
    return torch.rand(4, 16, generator=torch.Generator().manual_seed(0)) < 0.5


@pytest.fixture
def bank(model):
    return random_bank(model)


def steer(*args, **options):
    """`es.steer` with two slots a row, as many as any program here takes: each slot is traced in each block."""
    return es.steer(*args, **{"slots": 2, **options})


def cache_of(model, kind):
    from transformers import DynamicCache, StaticCache

    if kind == "dynamic":
        return DynamicCache(config=model.config)
    cache = StaticCache(config=model.config, max_cache_len=ROOM)
    heads, config = model.config.num_key_value_heads, model.config
    cache.early_initialization(
        4, heads, config.hidden_size // config.num_attention_heads, torch.float32, "cpu"
    )
    return cache


@torch.no_grad()
def decode(call, model, prompts, follow, *, side="left", kind="static", with_mask=True):
    """Logits of a prompt's tokens and of a few steps behind it, in a loop of one's own."""
    ids, mask = padded(prompts, side=side)
    cache, logits, whole = cache_of(model, kind), [], mask
    position = (mask.cumsum(1) - 1).clamp(min=0)
    for step in range(STEPS + 1):
        wide = ROOM - whole.shape[1] if kind == "static" else 0
        given = {"attention_mask": torch.nn.functional.pad(whole, (0, wide))} if with_mask else {}
        out = call(
            input_ids=ids, position_ids=position, past_key_values=cache, use_cache=True, **given
        ).logits
        logits.append(out[mask.bool()] if step == 0 else out[:, 0])
        if step < STEPS:
            ids = follow[:, step : step + 1]
            whole = torch.cat([whole, torch.ones_like(ids)], 1)
            position = position.amax(1, keepdim=True) + 1
    return torch.cat(logits)


def compiled(model, how, counter):
    if how == "whole":
        return torch.compile(model, backend=counter, fullgraph=True)
    for block in model.model.layers:
        block.compile(backend=counter, fullgraph=True)
    return model
