"""A text or a chat as tokens: each token's piece of the text, and whose turn it belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Span:
    """The tokens `[start, stop)` of one message of a chat; the template's marks around it belong to none."""

    role: str
    start: int
    stop: int


@dataclass(frozen=True)
class Tokens:
    """A text in tokens; the pieces put together are the text."""

    text: str
    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    turns: tuple[Span, ...]


def rendered(tok: Any, text: str | Sequence[Mapping[str, Any]]) -> Tokens:
    """Tokenize a text, or a chat by the tokenizer's template.

    Raises:
        TypeError, ValueError: no text, no chat, an empty one, or a tokenizer without a template.
    """
    if isinstance(text, str):
        ids, starts, pieces = _pieces(tok, text, special=True)
        if not ids:
            raise ValueError("text is empty: it has no token to read")
        return Tokens(text, ids, pieces, ())
    messages = _messages(text)
    if not getattr(tok, "chat_template", None):
        raise ValueError("text is a chat and the tokenizer has no chat template; pass the text as one string")
    whole = tok.apply_chat_template(messages, tokenize=False)
    ids, starts, pieces = _pieces(tok, whole, special=False)
    ends = [_end(tok, messages[: n + 1], whole) for n in range(len(messages))]
    turns, before = [], 0
    for message, end in zip(messages, ends):
        content = str(message["content"]).strip()
        begin = whole.find(content, before, end)
        if begin < 0:  # the template rewrote it: all it wrote for this message
            begin, content_end = before, end
        else:
            content_end = begin + len(content)
        first = next((i for i, at in enumerate(starts) if at >= begin), len(ids))
        stop = next((i for i, at in enumerate(starts) if at >= content_end), len(ids))
        turns.append(Span(message["role"], first, stop))
        before = end
    return Tokens(whole, ids, pieces, tuple(turns))


def _messages(chat: Any) -> list[dict[str, Any]]:
    if not isinstance(chat, Sequence) or isinstance(chat, (bytes, bytearray)):
        raise TypeError(f"text must be a string or a list of messages, got {type(chat).__name__}")
    if not chat:
        raise ValueError("text is a chat without messages")
    for i, message in enumerate(chat):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise TypeError(f'text[{i}] must be a message {{"role": …, "content": …}}, got {message!r}')
    return [dict(message) for message in chat]


def _end(tok: Any, messages: list[dict[str, Any]], whole: str) -> int:
    """Where the first messages end in the text of all of them."""
    part = tok.apply_chat_template(messages, tokenize=False)
    shared = next((i for i, (a, b) in enumerate(zip(part, whole)) if a != b), min(len(part), len(whole)))
    if shared < len(part.rstrip()):
        raise ValueError(
            f"the chat template writes message {len(messages) - 1} differently where others follow, "
            f"so its tokens cannot be told from theirs; pass the text as one string"
        )
    return shared


def _pieces(
    tok: Any, text: str, *, special: bool
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[str, ...]]:
    """Token ids, where each starts in the text, and its piece of it ("" for the rest of a character)."""
    if not getattr(tok, "is_fast", False):
        raise ValueError(
            f"reading needs a fast tokenizer, which knows where its tokens lie in the text; {type(tok).__name__} "
            f"does not"
        )
    found = tok(text, return_offsets_mapping=True, add_special_tokens=special)
    starts, pieces, done = [], [], 0
    for token, (start, stop) in zip(found["input_ids"], found["offset_mapping"]):
        if start == stop and stop <= done:  # added by the tokenizer, or the rest of a character
            added = token in tok.all_special_ids
            pieces.append(tok.convert_ids_to_tokens(token) if added else "")
            starts.append(done)
            continue
        pieces.append(text[done:stop])
        starts.append(min(start, done))
        done = max(done, stop)
    return tuple(found["input_ids"]), tuple(starts), tuple(pieces)
