"""One architecture: built, steered, and compared with hooks that do the same by hand in float64."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from emosteer.bank import Bank
from emosteer.models.blocks import PROBE_SHAPE, Decoder, find_decoder
from emosteer.models.patching import first_tensor
from emosteer.models.streams import output_of
from emosteer.steering import steer

from .row import KINDS, Row
from .tiny import tiny_config

RIGHT = 1e-4
STRENGTH = 0.3
_NAMES = ("one", "other")


def tried(kind: str, model_type: str) -> Row:
    """The row of an architecture; nothing is raised."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        model = _built(kind, model_type)
        ids = torch.arange(3, 3 + 2 * (PROBE_SHAPE[1] + 2)).view(2, -1)
        with torch.no_grad():
            plain = _logits(model, ids)
        if not bool(torch.isfinite(plain).all()):
            raise ValueError("its logits are not finite with weights drawn at random")
    except Exception as error:
        return Row(kind, model_type, "not built", reason=_short(error))
    try:
        decoder = find_decoder(model)
    except Exception as error:
        return Row(kind, model_type, "refused", reason=_short(error))
    where: dict[str, Any] = dict(blocks=decoder.name, depth=decoder.depth)
    try:
        bank = _bank(model, decoder, ids)
        steering = steer(model, bank, list(_NAMES), STRENGTH, layers="all")
        with steering, torch.no_grad():
            steered = _logits(model, ids)
            fused = steering.report().count("steered inside")
        note = ""
        try:
            by_hand = _by_hand(model, decoder, bank, ids, torch.float64)
        except Exception as problem:  # kernels and casts of its own
            by_hand = _by_hand(model, decoder, bank, ids, torch.float32)
            note = f"compared in float32, since it does not run in float64 ({_short(problem, 60)})"
        distance = _distance(steered, by_hand)
        moved = _distance(steered, plain)
    except Exception as problem:
        return Row(kind, model_type, "wrong", **where, reason=_short(problem))
    verdict = "right" if distance < RIGHT and moved > 10 * RIGHT else "wrong"
    reason = note if verdict == "right" else f"steering moved the logits by {moved:.1e}"
    return Row(kind, model_type, verdict, **where, fused=fused, error=f"{distance:.0e}", reason=reason)


def _built(kind: str, model_type: str) -> nn.Module:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

    auto = dict(zip(KINDS, (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM)))[kind]
    return auto.from_config(tiny_config(model_type), attn_implementation="eager").eval()


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    more = {"decoder_input_ids": ids} if getattr(model.config, "is_encoder_decoder", False) else {}
    found = output_of(model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **more))
    assert found is not None
    return found.clone()


def _bank(model: nn.Module, decoder: Decoder, ids: Tensor) -> Bank:
    """Random directions, in units of the blocks' mean norms."""
    norms: dict[int, float] = {}

    def measure(layer: int) -> Any:
        def hook(_block: nn.Module, _args: tuple, output: Any) -> None:
            hidden = first_tensor(output)
            assert hidden is not None
            norms[layer] = float(hidden.norm(dim=-1).mean())

        return hook

    hooks = [block.register_forward_hook(measure(layer)) for layer, block in enumerate(decoder.blocks)]
    try:
        with torch.no_grad():
            _logits(model, ids)
    finally:
        for one in hooks:
            one.remove()
    generator = torch.Generator().manual_seed(0)
    return Bank(
        _NAMES, {layer: torch.randn(2, decoder.dim, generator=generator) for layer in norms}, scale=norms
    )


def _by_hand(model: nn.Module, decoder: Decoder, bank: Bank, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Logits in `dtype` with plain hooks: y = x + s·u·v, brought back to the norm of x."""
    exact = copy.deepcopy(model).to(dtype)
    for module in exact.modules():  # grouped products of experts know no float64
        config: Any = getattr(module, "config", None)
        if hasattr(config, "_experts_implementation"):
            config._experts_implementation = "eager"
    blocks = exact.get_submodule(decoder.name)

    def change(layer: int) -> Any:
        step = STRENGTH * bank.scale[layer] * bank.directions[layer].double()[:, None]

        def hook(_block: nn.Module, _args: tuple, output: Any) -> None:
            x = first_tensor(output)
            assert x is not None
            y = x + step.to(x.dtype)
            x.copy_(y * (x.norm(dim=-1, keepdim=True) / y.norm(dim=-1, keepdim=True)))

        return hook

    for layer, block in enumerate(blocks.children()):
        block.register_forward_hook(change(layer))
    with torch.no_grad():
        return _logits(exact, ids)


def _distance(a: Tensor, b: Tensor) -> float:
    return float(((a.double() - b.double()).norm(dim=-1) / b.double().norm(dim=-1)).max())


def _short(error: Exception, most: int = 160) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= most else text[: most - 3] + "..."
