"""What inspect_ai finds by the entry point: the provider's name; the provider is imported when it is used."""

from __future__ import annotations

from typing import Any

from inspect_ai.model import modelapi


@modelapi("emosteer")
def emosteer() -> Any:
    """The provider "emosteer"."""
    from .provider import SteeredAPI

    return SteeredAPI
