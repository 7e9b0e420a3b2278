"""Logit lens: which words does a direction speak for by itself?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from emosteer.models.blocks import find_decoder
from emosteer.models.patching import evaluating, first_tensor, unwrap
from emosteer.models.scoring import device_of

from .found import Found, Table
from .setting import Setting

SHOWN = 5


def study(setting: Setting) -> Found:
    """The tokens that each direction makes likely, and where its own word stands."""
    bank = setting.bank
    logits = lens(setting.model, bank.directions[setting.layer])
    generator = torch.Generator().manual_seed(setting.seed)
    control = lens(setting.model, torch.randn(64, bank.dim, generator=generator))
    # A token that every direction speaks for says nothing about one.
    contrast = logits - logits.mean(0)
    control = control - control.mean(0)
    own = [setting.word(f" {name}")[0] for name in bank.names]
    percentile = torch.tensor([float((row < row[token]).float().mean()) for row, token in zip(contrast, own)])
    random = torch.stack([(control < control[:, [token]]).float().mean(1).mean() for token in own])
    tokens, numbers = [], {}
    for name, row, where in zip(bank.names, contrast, percentile.tolist()):
        up, down = (
            [setting.text([t]) for t in row.topk(SHOWN, largest=largest).indices.tolist()]
            for largest in (True, False)
        )
        numbers[name] = {"percentile": where, "up": up, "down": down}
        tokens.append((name, f"{where:.1%}", " · ".join(map(repr, up)), " · ".join(map(repr, down))))
    shown = (
        tokens
        if len(tokens) <= 24
        else [row for row in tokens if row[0] in setting.concepts] + tokens[:: len(tokens) // 18]
    )
    found = Found(
        "lens",
        "Which words does a direction speak for by itself?",
        f"Each direction of block {setting.layer} through the final norm and the head, less the mean over directions "
        f"(nostalgebraist, 2020). An emotion's own word is its first token.",
    )
    found.findings.append(
        f"The emotion's own word stands above {float(percentile.mean()):.0%} of the vocabulary on average (64 random "
        f"directions: {float(random.mean()):.0%}); in the top 1% for {int((percentile > 0.99).sum())} of {len(bank)}."
    )
    found.tables.append(
        Table(
            "tokens",
            ("direction", "own word above", "most likely", "least likely"),
            list(dict.fromkeys(shown)),
        )
    )
    found.numbers = {
        "mean_percentile": float(percentile.mean()),
        "random_percentile": float(random.mean()),
        "top_1_percent": int((percentile > 0.99).sum()),
        "directions": numbers,
    }
    return found


def lens(model: Any, rows: Tensor) -> Tensor:
    """float32 `[K, V]`: the logits of residual rows `[K, D]` put in after the last block."""
    decoder = find_decoder(model)

    def put_in(_block: Any, _args: Any, output: Any) -> Any:
        hidden = first_tensor(output)
        assert hidden is not None
        given = rows.to(hidden)[None]
        return given if output is hidden else type(output)((given, *output[1:]))

    hook = decoder.blocks[-1].register_forward_hook(put_in)
    try:
        with evaluating(unwrap(model)), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            ids = torch.zeros(1, len(rows), dtype=torch.long, device=device_of(model))
            return unwrap(model)(input_ids=ids, use_cache=False).logits[0].float().cpu()
    finally:
        hook.remove()
