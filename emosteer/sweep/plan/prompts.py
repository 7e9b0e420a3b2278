"""Prompts as they are given, with the tokens that they have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .units import Prompt


def prompts_of(tok: Any, given: Iterable[Any]) -> list[Prompt]:
    """Prompts from texts, chats (lists of messages), or mappings with `text` or `messages` and a `label`.

    Raises:
        TypeError, ValueError: something else, a prompt without a token, a label given twice.
    """
    found: list[Prompt] = []
    for number, item in enumerate(given):
        label, content = str(number), item
        if isinstance(item, Mapping):
            unknown = set(item) - {"label", "text", "messages"}
            if unknown or ("text" in item) == ("messages" in item):
                raise ValueError(
                    f"prompts[{number}] must have text or messages, and may have a label; got {sorted(item)}"
                )
            label, content = str(item.get("label", number)), item.get("text", item.get("messages"))
        if isinstance(content, str):
            text, ids = content, tok(content).input_ids
        elif isinstance(content, Sequence) and all(isinstance(m, Mapping) for m in content):
            text = tok.apply_chat_template(list(content), tokenize=False, add_generation_prompt=True)
            ids = tok(text, add_special_tokens=False).input_ids
        else:
            raise TypeError(f"prompts[{number}] must be a text or a list of messages, got {content!r}")
        if not len(ids):
            raise ValueError(f"prompts[{number}] has no token: {text!r}")
        found.append(Prompt(label, text, tuple(ids)))
    if not found:
        raise ValueError("prompts is empty; give at least one")
    seen: dict[Any, int] = {}
    for number, prompt in enumerate(found):
        for what in (prompt.label, prompt.tokens):
            first = seen.setdefault(what, number)
            if first != number:
                raise ValueError(
                    f"prompts[{number}] and prompts[{first}] have the same label or text; keep one"
                )
    return found
