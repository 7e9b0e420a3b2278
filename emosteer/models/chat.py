"""A text or a chat as tokens: each token's piece of the text, and whose turn it belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Stands for a message's content while it is found out what a template writes around it.
_MARK = "\ue000{}\ue001"
_THOUGHT = "</think>"


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

    Where a message lies is read off the rendered text itself: the chat is rendered once more with a
    mark for each content, and what stands around the marks is looked for in the text. A token that
    reaches into a message's content belongs to it.

    Raises:
        TypeError, ValueError: no text, no chat, an empty one, a tokenizer without a template, a chat
            that the template refuses, or one whose messages are not found in what it wrote.
    """
    if isinstance(text, str):
        # A chat that was rendered before brings its first token along.
        begun = bool(getattr(tok, "bos_token", None)) and text.startswith(tok.bos_token)
        ids, ends, pieces = _pieces(tok, text, special=not begun)
        if not ids:
            raise ValueError("text is empty: it has no token to read")
        return Tokens(text, ids, pieces, ())
    messages = _messages(text)
    whole = chat_text(tok, messages)
    ids, ends, pieces = _pieces(tok, whole, special=False)
    starts = (0, *ends[:-1])
    turns = []
    for message, (begin, end) in zip(messages, _contents(tok, messages, whole)):
        first = next((i for i, at in enumerate(ends) if at > begin), len(ids))
        stop = next((i for i, at in enumerate(starts) if i >= first and at >= end), len(ids))
        if whole[begin:end] not in "".join(pieces[first:stop]):
            raise ValueError(
                f"the tokens of the {message['role']}'s message {whole[begin:end]!r} do not give it back"
            )
        turns.append(Span(message["role"], first, stop))
    return Tokens(whole, ids, pieces, tuple(turns))


def chat_text(tok: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """A chat as its template writes it; tokenize it without special tokens, which it brings along.

    Raises:
        ValueError: there is no template, or it refuses the chat.
    """
    if not getattr(tok, "chat_template", None):
        raise ValueError("text is a chat and the tokenizer has no chat template; pass the text as one string")
    try:
        return tok.apply_chat_template([dict(message) for message in messages], tokenize=False)
    except Exception as error:  # jinja2 is no dependency of ours, and templates raise what they like
        roles = ", ".join(str(message["role"]) for message in messages)
        raise ValueError(f"the tokenizer's chat template refuses this chat ({roles}): {error}") from error


def token_ids(tok: Any, text: str | Sequence[Mapping[str, Any]]) -> list[int]:
    """The ids of a text, or of a chat as its template writes it; never two begin-of-text tokens."""
    if not isinstance(text, str):
        return list(tok(chat_text(tok, _messages(text)), add_special_tokens=False)["input_ids"])
    return one_beginning(tok, tok(text)["input_ids"])


def one_beginning(tok: Any, ids: Sequence[int]) -> list[int]:
    """Ids without the second of two begin-of-text tokens, which a rendered chat gets."""
    bos = getattr(tok, "bos_token_id", None)
    twice = bos is not None and len(ids) > 1 and ids[0] == ids[1] == bos
    return list(ids[1:] if twice else ids)


def _messages(chat: Any) -> list[dict[str, Any]]:
    if not isinstance(chat, Sequence) or isinstance(chat, (bytes, bytearray)):
        raise TypeError(f"text must be a string or a list of messages, got {type(chat).__name__}")
    if not chat:
        raise ValueError("text is a chat without messages")
    for i, message in enumerate(chat):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise TypeError(f'text[{i}] must be a message {{"role": …, "content": …}}, got {message!r}')
    return [dict(message) for message in chat]


def _contents(tok: Any, messages: list[dict[str, Any]], whole: str) -> list[tuple[int, int]]:
    """Where each message's content begins and ends in the rendered text."""
    visible = [_visible(message["content"]) for message in messages]
    marks = [_MARK.format(n) for n in range(len(messages))]
    marked = chat_text(
        tok,
        [{**m, "content": _marked(m["content"], v, mark)} for m, v, mark in zip(messages, visible, marks)],
    )
    places, before, at = [], 0, 0
    for n, (content, mark) in enumerate(zip(visible, marks)):
        stood = marked.find(mark, at)
        if stood < 0:
            raise ValueError(
                f"the chat template leaves out message {n} ({messages[n]['role']}), or moves it; "
                f"pass the text as one string"
            )
        around = marked[at:stood]
        at = stood + len(mark)
        begin = before + len(around)
        if whole[before:begin] != around or not whole.startswith(content, begin):
            # The template kept or took off the spaces around a content.
            lead = len(around) - len(around.rstrip())
            begin = whole.find(content, before + len(around) - lead)
            between = whole[before:begin] if begin >= 0 else ""
            if begin < 0 or between.split() != around.split():
                raise ValueError(
                    f"the chat template rewrites message {n} ({messages[n]['role']}), so its tokens cannot be told "
                    f"from the template's; pass the text as one string"
                )
        before = begin + len(content)
        places.append((begin, before))
    return places


def _visible(content: Any) -> str:
    """What of a content stays in the text wherever the message stands: not its thoughts, nor the spaces around."""
    if not isinstance(content, str):
        raise ValueError(f"content must be a string, got {type(content).__name__}: {str(content)[:60]}")
    return content.rpartition(_THOUGHT)[2].strip()


def _marked(content: str, visible: str, mark: str) -> str:
    head, tag, tail = content.rpartition(_THOUGHT)
    return head + tag + (tail.replace(visible, mark, 1) if visible else tail + mark)


def _pieces(
    tok: Any, text: str, *, special: bool
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[str, ...]]:
    """Token ids, where each ends in the text, and its piece of it ("" for the rest of a character)."""
    if not getattr(tok, "is_fast", False):
        raise ValueError(
            f"reading needs a fast tokenizer, which knows where its tokens lie in the text; {type(tok).__name__} "
            f"does not"
        )
    found = tok(text, return_offsets_mapping=True, add_special_tokens=special)
    ends, pieces, done = [], [], 0
    for token, (start, stop) in zip(found["input_ids"], found["offset_mapping"]):
        if start == stop and stop <= done:  # added by the tokenizer, or the rest of a character
            added = token in tok.all_special_ids
            pieces.append(tok.convert_ids_to_tokens(token) if added else "")
        else:
            pieces.append(text[done:stop])
            done = max(done, stop)
        ends.append(done)
    return tuple(found["input_ids"]), tuple(ends), tuple(pieces)
