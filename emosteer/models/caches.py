"""How many columns of a text a cache holds, also where a cache of recurrent states does not say."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

# What a cache of keys is called; transformers calls every cache "cache" from 5.24 on.
KEYS = ("past_key_values", "cache")
# What caches are called that hold recurrent states alone.
RECURRENT = ("cache_params", "state")


class Filled:
    """Columns in the caches that a model's passes run on.

    A cache of keys says how many it holds. One of recurrent states alone does not: what goes into it is
    counted, by an object that sees every pass from the first on.

    Args:
        names: parameters of the forward that is called.
    """

    def __init__(self, names: list[str]) -> None:
        self._counted: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._silent = any(name in RECURRENT for name in names)

    def columns(self, call: dict[str, Any]) -> int | Tensor | None:
        """How many columns the cache of a call holds before it; None where tokens went in that nobody counted.

        Args:
            call: the arguments by name.
        """
        at = call.get("cache_position")
        if isinstance(at, Tensor):
            return at[0]
        cache = _cache_of(call)
        if cache is None:
            return 0
        held = _told(cache)
        if held is not None:
            return held
        fresh = _is_fresh(cache)
        if torch.compiler.is_compiling():
            return 0 if fresh else None
        self._silent = True
        if fresh:
            self._counted[_key(cache)] = 0
        return self._counted.get(_key(cache))

    def saw(self, call: dict[str, Any], output: Any, length: int) -> None:
        """Count a pass of so many columns, after it."""
        before = _cache_of(call)
        if not self._silent and before is not None:
            return
        # By its own names: asked for one of an older version, transformers answers with a warning.
        after = _cache_of({name: output[name] for name in output}) if hasattr(output, "get") else None
        after = before if after is None else after
        held = 0 if before is None else self._counted.get(_key(before))
        if after is not None and held is not None and _told(after) is None:
            self._counted[_key(after)] = held + length


def _cache_of(named: Any) -> Any:
    for name in (*KEYS, *RECURRENT):
        cache = named.get(name)
        if cache is not None and not isinstance(cache, (Tensor, bool)):
            return tuple(cache) if name in KEYS and isinstance(cache, list) else cache
    return None


def as_argument(model: Any, cache: Any) -> dict[str, Any]:
    """A cache of keys as the argument that a model's forward takes it in."""
    names = inspect.signature(model.forward).parameters
    return {next((name for name in reversed(KEYS) if name in names), KEYS[0]): cache}


def given(call: dict[str, Any]) -> Any:
    """The very cache of keys that a call hands over; None without."""
    return next((call[name] for name in KEYS if call.get(name) is not None), None)


def _told(cache: Any) -> int | Tensor | None:
    """What a cache says itself."""
    if isinstance(cache, tuple):  # keys and values of each layer
        return cache[0][0].shape[-2] if cache and isinstance(cache[0][0], Tensor) else 0
    if not hasattr(cache, "get_seq_length"):
        return None
    try:
        held = cache.get_seq_length()
    except ValueError:  # no layer of it keeps keys
        return None
    if isinstance(held, Tensor):
        return held.clone()  # a static cache hands out the tensor that it counts in, which the pass moves on
    if torch.compiler.is_compiling() or held:
        return held
    # Where the first layer keeps no keys, another may.
    others = [one.get_seq_length() for one in getattr(cache, "layers", ()) if hasattr(one, "get_seq_length")]
    return max((n for n in others if isinstance(n, int)), default=0)


def _is_fresh(cache: Any) -> bool:
    """Whether nothing has gone into a cache; False where it does not say."""
    if not getattr(cache, "layers", None):
        return False
    for layer in cache.layers:
        begun = getattr(layer, "has_previous_state", False)
        if any(begun.values()) if isinstance(begun, dict) else begun:
            return False
    return True


def _key(cache: Any) -> Any:
    """What stands for a cache: lists have no weak references, their tensors do."""
    return cache[0] if isinstance(cache, list) else cache
