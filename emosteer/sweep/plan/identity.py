"""What a unit is determined by, as hashes that are the same tomorrow and on another machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from emosteer.bank import Bank
from emosteer.models.patching import unwrap
from emosteer.programs import Program

# Elements that are summed at a time, so that a large weight is never copied whole.
_CHUNK = 1 << 22

# An odd multiplier (Knuth's), so that no change of a single element leaves a weight's sum as it was.
_MULTIPLIER = 6364136223846793005


def digest(*parts: Any, size: int = 16) -> str:
    """A hex digest of anything that JSON can hold."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()


def model_id(model: Any, tok: Any) -> str:
    """The hash of a model's weights, configuration and tokenizer: not of its name or where it lies.

    Each weight counts with its bits, through a sum of its words modulo 2⁶⁴ in which every place has an
    odd factor of its own; so a merged adapter or an edited row makes another model. One read of the
    weights, on their device.
    """
    module = unwrap(model)
    weights = [[name, _checksum(value)] for name, value in sorted(module.state_dict().items())]
    return digest(weights, _configuration(module), _tokenizer(tok))


def _checksum(value: Any) -> list:
    if not isinstance(value, Tensor):
        return [repr(value)]
    if hasattr(value, "__tensor_flatten__") and type(value) is not Tensor and type(value) is not nn.Parameter:
        names, _context = value.__tensor_flatten__()
        return [type(value).__name__, *(_checksum(getattr(value, name)) for name in names)]
    words = value.detach().contiguous().flatten().view(torch.uint8)
    words = nn.functional.pad(words, (0, -len(words) % 4)).view(torch.int32)
    total = 0
    for start in range(0, len(words), _CHUNK):
        part = words[start : start + _CHUNK].to(torch.int64)
        place = torch.arange(start, start + len(part), device=part.device) * _MULTIPLIER
        total += int((part * (place | 1)).sum())
    return [str(value.dtype), list(value.shape), total % 2**64]


def _configuration(module: nn.Module) -> Any:
    config: Any = getattr(module, "config", None)
    if config is None:
        return type(module).__name__
    kept = {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    return json.loads(json.dumps(kept, default=str))


def _tokenizer(tok: Any) -> Any:
    backend = getattr(tok, "backend_tokenizer", None)
    if backend is not None:
        return digest(backend.to_str(), getattr(tok, "chat_template", None))
    return digest(tok.get_vocab(), getattr(tok, "chat_template", None))


class ProgramIds:
    """The hash of a program at a set of layers: of its names, numbers and the bits of its directions.

    Args:
        bank: the directions.
        relative: whether strengths are fractions of each token's own norm.
    """

    def __init__(self, bank: Bank, relative: bool = False) -> None:
        self.bank, self.relative = bank, relative
        self._directions: dict[tuple[str, tuple[int, ...]], str] = {}
        self._programs: dict[tuple[Program, tuple[int, ...]], str] = {}

    def of(self, program: Program, layers: Sequence[int]) -> str:
        """Hex digest; the empty program has one whatever the layers."""
        layers = tuple(layers) if program.slots else ()
        key = program, layers
        if key not in self._programs:
            unit = None if self.relative else [self.bank.scale.get(layer) for layer in layers]
            slots = [
                [s.name, self._direction(s.name, layers), s.strength, s.low, s.high, s.rotate]
                for s in program.slots
            ]
            self._programs[key] = digest(slots, program.norm_form(), list(layers), unit, size=8)
        return self._programs[key]

    def _direction(self, name: str, layers: tuple[int, ...]) -> str:
        key = name, layers
        if key not in self._directions:
            row = self.bank.index(name)
            bits = hashlib.blake2b(digest_size=16)
            for layer in layers:
                bits.update(self.bank.directions[layer][row].cpu().numpy().tobytes())
            self._directions[key] = bits.hexdigest()
        return self._directions[key]
