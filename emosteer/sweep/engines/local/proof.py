"""Whether a model may be run piece by piece: tried on a few tokens, not looked up in a list."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from emosteer.models.blocks import _plain_ids

from ...plan.units import Prompt
from .cache import RowCache, Stripe, past_cache
from .memory import Budget
from .passes import Passes
from .prefix import added, prefixes, right_padded
from .steered import Steered

# What two ways of computing a logit may differ by, in standard deviations of the logits.
_ROOM = {torch.float32: 1e-3, torch.float16: 3e-2}
_ROOM_ELSE = 2e-1

_proved: WeakKeyDictionary[nn.Module, tuple[Any, str | None, list[nn.Module]]] = WeakKeyDictionary()


def why_not(passes: Passes, steered: Steered, budget: Budget) -> str | None:
    """None if prompts can be cached, begun in the middle and continued side by side; else what failed.

    Two prompts of different lengths are run whole, then once more in pieces: up to the shared block, on
    from there, and one token further in a cache of sequences; the logits must agree. Remembered as long as the
    model's blocks and the type of its weights stay the same.
    """
    weight = next(passes.decoder.stack.parameters(), None)
    state = (passes.decoder.blocks, None if weight is None else (weight.dtype, weight.device))
    known = _proved.get(passes.model)
    if known is None or known[0] != state:
        try:
            why = _try(passes, steered, budget)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        known = _proved[passes.model] = (state, why, passes.trimming.modules)
    passes.trimming.modules = known[2]
    return known[1]


def _try(passes: Passes, steered: Steered, budget: Budget) -> str | None:
    ids = _plain_ids(passes.model.config, 14)
    texts, following = (tuple(ids[:7]), tuple(ids[7:11])), ids[11]
    depth, block = passes.decoder.depth, steered.shared
    plain = [_plain(passes, steered, text) for text in texts]
    longer = [_plain(passes, steered, (*text, following)) for text in texts]
    room = _ROOM.get(plain[0].dtype, _ROOM_ELSE) * float(plain[0].float().std())
    cached = prefixes(passes, steered, [Prompt("", "", text) for text in texts], budget, whole=True)
    for prefix, expected in zip(cached, plain):
        if not _near(prefix.last, expected, room):
            return "prompts padded on the right give other logits"
    rows = RowCache(2, 12, depth)
    for prefix, text, expected in zip(cached, texts, plain):
        one, mask = right_padded([text], passes.device)
        cache = past_cache([None] * depth, 0, keep=True)
        with steered.batch([-1], [len(text)]):
            logits = passes(
                one,
                mask=mask,
                position_ids=torch.arange(len(text), device=passes.device)[None],
                cache=cache,
                start=prefix.hidden[None].clone(),
                first=block + 1,
                wanted=[len(text) - 1],
            )
        if logits is None or not _near(logits[0], expected, room):
            return f"a pass begun after block {block} gives other logits"
        stripes = []
        for layer in range(depth):
            if layer <= block:
                shared = prefix.kv[layer]
                assert shared is not None
                stripes.append(Stripe((shared,)))
            else:
                keys, values = added(cache.layers[layer])
                stripes.append(Stripe(((keys[0], values[0]),)))
        rows.admit(stripes)
    with steered.batch([-1, -1], [len(text) for text in texts]):
        logits = passes(
            torch.full((2, 1), following),
            mask=rows.mask(passes.device),
            position_ids=torch.tensor([[len(text)] for text in texts], device=passes.device),
            cache=rows.cache,
            wanted=[0, 1],
        )
    assert logits is not None
    if not all(_near(row, expected, room) for row, expected in zip(logits, longer)):
        return "a token behind cached keys and values gives other logits"

    def trimmed() -> bool:
        again = prefixes(passes, steered, [prefix.prompt for prefix in cached], budget, whole=True)
        return all(_near(prefix.last, expected, room) for prefix, expected in zip(again, plain))

    passes.trimming.find(trimmed)
    return None


def _plain(passes: Passes, steered: Steered, text: tuple[int, ...]) -> Tensor:
    ids = torch.tensor([text], device=passes.device)
    with steered.batch([-1], [len(text)]), torch.no_grad():
        output: Any = passes.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return output.logits[0, -1]


def _near(a: Tensor | None, b: Tensor, room: float) -> bool:
    return a is not None and bool((a.float() - b.float()).abs().max() <= room)
