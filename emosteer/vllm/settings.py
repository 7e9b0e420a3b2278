"""What an engine is told once: its banks, and how much room steering has, in vLLM's `additional_config`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from emosteer.steering import MIN_SLOTS

from .asking import Asked, params

# The entry of `additional_config`, and the variable that holds the same as JSON where a command line is fixed.
KEY, ENVIRONMENT = "emosteer", "EMOSTEER_VLLM_CONFIG"
# What the engine adds to its entry for its own workers and for the key of its compile cache.
DIGEST = "digest"


@dataclass(frozen=True)
class Settings:
    """How an engine steers.

    Attributes:
        banks: name → file of the banks.
        default: what every request does that does not say: a program's text, or what `emosteer.vllm.params` gives.
        layers: the layers at which requests may steer, as `es.steer` takes them; each costs a little even idle.
        slots: directions that a program may combine.
        traced: whether the formula is traced into the graph instead of calling an operator.
        readable: the layers at which requests may be read, as `es.steer` takes them; None: nowhere, at no cost.
        adapters: name of a LoRA adapter → what its requests do that do not say, in place of `default`.
    """

    banks: Mapping[str, str]
    default: Asked | None = None
    layers: Any = "all"
    slots: int = MIN_SLOTS
    traced: bool = False
    readable: Any = None
    adapters: Mapping[str, Asked] = field(default_factory=dict)
    digest: str = field(default="", compare=False)

    @classmethod
    def of(cls, additional_config: Any) -> Settings | None:
        """The settings in a `VllmConfig.additional_config`, None where there are none.

        Raises:
            TypeError, ValueError: the entry, what came and what is expected.
        """
        given = additional_config.get(KEY) if isinstance(additional_config, Mapping) else None
        return None if given is None else cls.read(given)

    @classmethod
    def read(cls, given: Any) -> Settings:
        """The settings that a mapping of their names to plain values gives; errors as `of`."""
        if not isinstance(given, Mapping):
            raise TypeError(f"{KEY} must map names of settings to values, got {type(given).__name__}")
        known = [one.name for one in fields(cls)]
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"{KEY} has no setting {unknown[0]!r}; known are {', '.join(known[:-1])}")
        banks = given.get("banks")
        if not isinstance(banks, Mapping) or not banks:
            raise ValueError(
                f'{KEY}.banks must map names to files, like {{"emotions": "emotions.safetensors"}}; got {banks!r}'
            )
        for name, file in banks.items():
            if not isinstance(name, str) or not name.strip() or not isinstance(file, (str, os.PathLike)):
                raise TypeError(f"{KEY}.banks must map names to files, got {name!r}: {file!r}")
        slots = given.get("slots", MIN_SLOTS)
        if isinstance(slots, bool) or not isinstance(slots, int) or not 1 <= slots <= 64:
            raise ValueError(f"{KEY}.slots must be a number from 1 to 64, got {slots!r}")
        traced = given.get("traced", False)
        if not isinstance(traced, bool):
            raise TypeError(f"{KEY}.traced must be true or false, got {traced!r}")
        try:
            default = _default(given.get("default"), "default")
            adapters = _adapters(given.get("adapters"))
            layers = _layers(given.get("layers", "all"))
            readable = None if given.get("readable") is None else _layers(given["readable"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{KEY}: {error}") from None
        paths = {name: str(Path(file).expanduser().absolute()) for name, file in banks.items()}
        return cls(paths, default, layers, slots, traced, readable, adapters, str(given.get(DIGEST, "")))

    @classmethod
    def in_environment(cls) -> Mapping[str, Any] | None:
        """What the environment gives, None where it gives nothing.

        Raises:
            ValueError: it is no JSON.
        """
        text = os.environ.get(ENVIRONMENT)
        if not text:
            return None
        try:
            return json.loads(text)
        except ValueError as error:
            raise ValueError(f"the environment variable {ENVIRONMENT} is not JSON: {error}") from None

    @property
    def defaults(self) -> list[Asked]:
        """What requests do that do not say: of all, and of each adapter."""
        return [one for one in (self.default, *self.adapters.values()) if one is not None]

    def default_of(self, adapter: str | None) -> Asked | None:
        """What a request does that does not say, under an adapter (None: under none)."""
        return self.default if adapter is None else self.adapters.get(adapter, self.default)

    def plain(self, digest: str) -> dict[str, Any]:
        """What `of` reads back, with the digest of everything that the settings name, as JSON can hold it."""
        layers, readable = (
            list(given) if isinstance(given, tuple) else given for given in (self.layers, self.readable)
        )
        default = None if self.default is None else self.default.extra_args()
        return {
            "banks": dict(self.banks),
            "default": default,
            "adapters": {name: asked.extra_args() for name, asked in self.adapters.items()},
            "layers": layers,
            "slots": self.slots,
            "traced": self.traced,
            "readable": readable,
            DIGEST: digest,
        }


def _layers(given: Any) -> Any:
    asked = Asked.of(params("none", layers=given))
    assert asked is not None
    return asked.layers


def _default(given: Any, of: str) -> Asked | None:
    if given is None:
        return None
    if isinstance(given, str):
        return Asked.of(params(given))
    wrong = f"{of} must be a program's text or what emosteer.vllm.params gives, got {given!r}"
    if not isinstance(given, Mapping):
        raise TypeError(wrong)
    asked = Asked.of(given)
    if asked is None or asked.program is None or asked.reads is not None or asked.prompt is not None:
        raise ValueError(wrong)
    return asked


def _adapters(given: Any) -> dict[str, Asked]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"adapters must map names of LoRA adapters to programs, got {given!r}")
    found = {}
    for name, program in given.items():
        asked = _default(program, f"adapters[{name!r}]")
        if not isinstance(name, str) or asked is None:
            raise TypeError(
                f"adapters must map names of LoRA adapters to programs, got {name!r}: {program!r}"
            )
        found[name] = asked
    return found
