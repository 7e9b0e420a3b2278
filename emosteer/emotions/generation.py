"""More stories, written by a model of the user's own: batched, resumable, filtered for leaks."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from emosteer.models.progress import Progress
from emosteer.models.scoring import device_of, padded, repetition

from .check import forms, numbered
from .corpus import PERSONS, WORDS, Story

PROMPT = (
    "Write one paragraph of about 80 words, in the {person} person, in which {who} is {emotion}. "
    "The situation: {topic}. Show the feeling by what is done, said, thought and seen. "
    'Do not use the word "{emotion}" or any word for a feeling. Write the paragraph only.'
)
_WHO = {"first": "the one who tells it", "third": "the main character"}
# A text that repeats itself this much is a loop, not a story.
MOST_REPETITION = 0.3


@dataclass
class Generated:
    """What came of a run.

    Attributes:
        written: stories added to the file.
        there: stories that the file held already.
        refused: reason → texts that were thrown away.
        missing: `(emotion, topic)` pairs that still lack stories after all tries.
    """

    written: int = 0
    there: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    missing: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Wanted:
    """The `number`th story of an emotion and a topic."""

    emotion: str
    topic: str
    number: int

    @property
    def person(self) -> str:
        # alternates over emotions and stories, so that neither person belongs to any of them
        return PERSONS[(len(self.emotion) + self.number) % 2]


def generate(
    model: Any,
    tok: Any,
    path: str | os.PathLike[str],
    topics: Sequence[str],
    *,
    emotions: Iterable[str] = WORDS,
    per_topic: int = 1,
    tries: int = 4,
    batch_rows: int = 16,
    max_new_tokens: int = 160,
    temperature: float = 0.9,
    least_words: int = 30,
    prompt: str = PROMPT,
    seed: int = 0,
    progress: bool = True,
) -> Generated:
    """Have a model write stories of each emotion in each situation, into a JSON-lines file.

    A text is kept if it is whole sentences of at least `least_words` words, does not name its emotion
    (`check.forms`), does not loop and is not there already. The file grows by whole lines, batch by
    batch; run again it is completed, and a run that was killed loses one batch at most. The same
    file, model, arguments and seed give the same stories.

    Args:
        model, tok: a causal language model and its tokenizer; its chat template is used if it has one.
        path: the file, new or half done.
        topics: situations, in words; the same for every emotion.
        emotions: what the stories express.
        per_topic: stories for each emotion and topic.
        tries: how often a story is asked for at most.
        batch_rows: stories asked for at once.
        max_new_tokens, temperature: of the sampling.
        least_words: shorter texts are thrown away.
        prompt: a template with {emotion}, {topic}, {person} and {who}.
        seed: of the sampling.
        progress: show a bar where the output is a terminal.

    Raises:
        ValueError: no topics or emotions, numbers below 1, a file that holds something else.
    """
    topics, emotions = tuple(dict.fromkeys(topics)), tuple(dict.fromkeys(emotions))
    if not topics or not emotions:
        raise ValueError(
            f"topics and emotions must have an entry each, got {len(topics)} and {len(emotions)}"
        )
    for name, value in {
        "per_topic": per_topic,
        "tries": tries,
        "batch_rows": batch_rows,
        "max_new_tokens": max_new_tokens,
    }.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    path = Path(path)
    have = _resume(path)
    result = Generated(there=len(have))
    texts = {story.text for story in have}
    count = Counter((story.emotion, story.topic) for story in have)
    wanted = [
        _Wanted(emotion, topic, number)
        for number in range(per_topic)
        for topic in topics
        for emotion in emotions
        if number >= count[emotion, topic]
    ]
    with Progress(progress) as bar, path.open("a", encoding="utf-8", newline="\n") as file:
        bar.begin("stories", len(wanted))
        for attempt in range(tries):
            left = []
            for start in range(0, len(wanted), batch_rows):
                batch = wanted[start : start + batch_rows]
                written = _write(model, tok, batch, prompt, max_new_tokens, temperature, seed, attempt)
                lines = []
                for one, text in zip(batch, written):
                    reason = _refused(one, text, texts, least_words)
                    if reason is not None:
                        result.refused[reason] += 1
                        left.append(one)
                        continue
                    texts.add(text)
                    entry = {"emotion": one.emotion, "topic": one.topic, "person": one.person, "text": text}
                    lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
                file.write("".join(lines))
                file.flush()
                os.fsync(file.fileno())
                result.written += len(lines)
                bar.advance(len(lines))
            wanted = left
            if not wanted:
                break
    result.missing = list(dict.fromkeys((one.emotion, one.topic) for one in wanted))
    return result


def _resume(path: Path) -> list[Story]:
    """The stories of a file; half a line at its end, which a killed run leaves, is cut off."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    stories = []
    for number, story in numbered(whole) if whole else ():
        if isinstance(story, str):
            raise ValueError(f"{path} is not a corpus to go on with: line {number}: {story}")
        stories.append(story)
    if whole != content:
        os.truncate(path, len(whole))
    return stories


def _write(
    model: Any,
    tok: Any,
    batch: Sequence[_Wanted],
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    attempt: int,
) -> Iterator[str]:
    rows = []
    for one in batch:
        asked = prompt.format(emotion=one.emotion, topic=one.topic, person=one.person, who=_WHO[one.person])
        if getattr(tok, "chat_template", None):
            message = [{"role": "user", "content": asked}]
            ids = tok.apply_chat_template(
                message, add_generation_prompt=True, tokenize=True, return_dict=True
            )
            rows.append(list(ids["input_ids"]))
        else:
            rows.append(list(tok(asked + "\n\n").input_ids))
    pad = tok.pad_token_id if tok.pad_token_id is not None else 0
    device = device_of(model)
    ids, mask = padded(rows, pad, device)
    # A batch's draws depend on what is asked for, not on what was written before it.
    asked_for = hashlib.blake2b(f"{seed} {attempt} {batch}".encode(), digest_size=7).digest()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(int.from_bytes(asked_for, "big"))
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=True,
            temperature=temperature,
            top_p=0.95,
            pad_token_id=pad,
        )
    for row in out[:, ids.shape[1] :]:
        yield cleaned(tok.decode(row, skip_special_tokens=True))


def cleaned(text: str) -> str:
    """The first paragraph of what a model wrote, up to its last whole sentence, on one line."""
    paragraphs = [part.strip() for part in text.strip().split("\n\n") if part.strip()]
    # "Here is a paragraph:" is not the story
    if len(paragraphs) > 1 and paragraphs[0].endswith(":"):
        paragraphs = paragraphs[1:]
    first = " ".join(paragraphs[0].split()) if paragraphs else ""
    ends = [match.end() for match in re.finditer(r"[.!?][\"'”’)]*(?=\s|$)", first)]
    return first[: ends[-1]] if ends else ""


def _refused(one: _Wanted, text: str, texts: set[str], least_words: int) -> str | None:
    words = text.split()
    if len(words) < least_words:
        return "too short"
    if forms(one.emotion).search(text):
        return "names its emotion"
    if text in texts:
        return "written before"
    if repetition([hash(word) for word in words]) > MOST_REPETITION:
        return "repeats itself"
    return None
