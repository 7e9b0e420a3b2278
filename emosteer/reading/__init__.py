"""Residual stream → scores: how strongly each token of a text expresses each concept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from emosteer.bank import Bank
from emosteer.models.blocks import check_layers, resolve_layers
from emosteer.models.capture import Capture, layer_at_two_thirds
from emosteer.models.chat import Span, rendered
from emosteer.ops import project
from emosteer.zscores import ZScores

from .result import Reading
from .scores import UNITS

__all__ = ["Reading", "Span", "read"]


def read(
    model: Any,
    tok: Any,
    text: str | Sequence[Mapping[str, Any]],
    bank: Bank,
    *,
    concepts: Iterable[str] | None = None,
    layers: Any = None,
    unit: str = "z",
    skip_tokens: int = 1,
) -> Reading:
    """Read concepts in a text: `es.read(model, tok, "text or chat", bank)`.

    For the residual row `x` of each token at a layer, with the bank's mean residual and the mean m and
    spread s of the projection over the tokens of the corpus that the bank was made from,

        unit="z":           (<x − mean, v> − m) / s
        unit="projection":  <x − mean, v> / scale, in mean residual norms; <x − mean, v> without a scale

    Several layers are averaged. One forward pass that stops after the last wanted block; memory for
    the scores only, not for the residual stream.

    Args:
        model: any decoder; a model that is steered is read as steered.
        tok: its tokenizer.
        text: a string, or a chat: `[{"role": "user", "content": "…"}, …]`, put through the tokenizer's
            chat template.
        bank: the directions.
        concepts: what is read; all of the bank by default.
        layers: where; the bank's layer nearest to two thirds of the depth by default.
        unit: "z" needs a bank with statistics, as `es.extract` makes it; "projection" takes any.
        skip_tokens: tokens at the start that summaries leave out: the first one's residual is far from
            all others (an attention sink), so its scores mean nothing.

    Returns:
        a `Reading`: `.tokens`, `.names`, `.scores` `[T, K]`, `.turns`, `.top()`, `.table()`,
        `.heatmap()`, `.plot()`, `.to_html()`.

    Raises:
        TypeError, ValueError: the message names the argument; an unknown concept gets its nearest names.
    """
    if not isinstance(bank, Bank):
        raise TypeError(f"bank must be an emosteer Bank, got {type(bank).__name__}")
    if unit not in UNITS:
        raise ValueError(f"unit must be one of {', '.join(UNITS)}, got {unit!r}")
    if not isinstance(skip_tokens, int) or isinstance(skip_tokens, bool) or skip_tokens < 0:
        raise ValueError(f"skip_tokens must be an integer of at least 0, got {skip_tokens!r}")
    if isinstance(concepts, str):
        concepts = (concepts,)
    names = bank.names if concepts is None else tuple(concepts)
    for name in names:
        bank.index(name)
    if not names:
        raise ValueError("concepts is empty; name at least one, or leave it out to read all")
    tokens = rendered(tok, text)
    capture = Capture(model, (0,))
    if bank.dim != capture.decoder.dim:
        raise ValueError(
            f"the bank has directions of width {bank.dim}, the residual stream has {capture.decoder.dim}; "
            f"they belong to different models"
        )
    check_layers(bank.layers, capture.decoder.depth)
    capture.layers = _layers(layers, bank, capture.decoder.depth)
    longest = getattr(getattr(capture.model, "config", None), "max_position_embeddings", None)
    if isinstance(longest, int) and len(tokens.ids) > longest:
        raise ValueError(f"text has {len(tokens.ids)} tokens, the model takes at most {longest}; split it")
    scorers = {layer: _scorer(bank, layer, names, unit) for layer in capture.layers}
    by_layer: dict[int, Tensor] = {}

    def see(layer: int, hidden: Tensor) -> None:
        by_layer[layer] = scorers[layer](hidden[0]).cpu()

    capture.run(torch.tensor([tokens.ids], device=capture.device), see)
    return Reading(
        text=tokens.text,
        tokens=tokens.pieces,
        turns=tokens.turns,
        names=names,
        scores=torch.stack(list(by_layer.values())).mean(0),
        by_layer=by_layer,
        unit=unit,
        skip_tokens=min(skip_tokens, len(tokens.ids) - 1),
    )


def _layers(layers: Any, bank: Bank, depth: int) -> tuple[int, ...]:
    if layers is None:
        return (layer_at_two_thirds(bank.layers, depth),)
    if layers == "all":
        return bank.layers
    wanted = resolve_layers(layers, depth)
    missing = [layer for layer in wanted if layer not in bank.layers]
    if missing:
        raise ValueError(f"layers {missing} are not in the bank, which has layers {list(bank.layers)}")
    return wanted


def _scorer(bank: Bank, layer: int, names: tuple[str, ...], unit: str) -> Any:
    if unit == "z":
        if not bank.projection_std:
            raise ValueError(
                'unit "z" needs the statistics of the bank\'s projections, which this bank does not have; '
                'make it with es.extract, or read with unit="projection"'
            )
        return ZScores(bank, layer, names)
    directions = bank.directions[layer][[bank.index(name) for name in names]].contiguous()
    center = bank.mean[layer] if bank.mean else None
    length = bank.scale.get(layer, 1.0)

    def score(hidden: Tensor) -> Tensor:
        to = hidden.device
        return project(hidden, directions.to(to), center=None if center is None else center.to(to)) / length

    return score
