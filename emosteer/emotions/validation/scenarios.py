"""Scenarios: situations in YAML, with rules that say from a model's answer what happened."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "scenarios"
KINDS = ("pattern", "choice", "judge")
ROLES = ("user", "assistant")


@dataclass(frozen=True)
class Outcome:
    """Something that may happen in an answer.

    Attributes:
        name: what it is called.
        pattern: a regular expression that the answer must contain (`unless`: and another it must not),
        choice: or continuations of which the first means that it happened, by log-probability,
        begun: after this beginning of an answer,
        judge: or the name of a function of the caller's that looks at the answer.
    """

    name: str
    pattern: re.Pattern[str] | None = None
    unless: re.Pattern[str] | None = None
    choice: tuple[str, ...] = ()
    begun: str = ""
    judge: str | None = None

    def happened(self, answer: str) -> bool:
        """By its pattern."""
        assert self.pattern is not None
        return bool(self.pattern.search(answer)) and not (self.unless and self.unless.search(answer))


@dataclass(frozen=True)
class Scenario:
    """A situation, and what to look for in the answer.

    Attributes:
        name, about: what it is.
        system: the system prompt, with `tools` appended.
        turns: `role` and `content` each, the last one the user's.
        outcomes: what to look for.
    """

    name: str
    about: str
    system: str
    turns: tuple[dict[str, str], ...]
    outcomes: tuple[Outcome, ...]

    @property
    def messages(self) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.turns]


def shipped() -> list[Scenario]:
    """The scenarios that come with emosteer: leverage, an impossible test, flattery."""
    return [read_scenario(path) for path in sorted(FOLDER.glob("*.yaml"))]


def read_scenario(path: str | os.PathLike[str]) -> Scenario:
    """A scenario from a YAML file: name, about, system, tools, turns, outcomes.

    Raises:
        ValueError: what is wrong where in the file.
        ImportError: PyYAML is missing.
    """
    try:
        import yaml
    except ImportError:
        raise ImportError('scenarios need PyYAML: pip install "emosteer[science]"') from None
    try:
        entry = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        return _scenario(entry)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None


def _scenario(entry: Any) -> Scenario:
    _keys("the scenario", entry, {"name", "turns", "outcomes"}, {"about", "system", "tools"})
    turns = entry["turns"]
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"turns must be a list with an entry at least, got {turns!r}")
    for k, turn in enumerate(turns):
        _keys(f"turns[{k}]", turn, {"role", "content"}, set())
        if turn["role"] not in ROLES or not isinstance(turn["content"], str):
            raise ValueError(f"turns[{k}] must have a role of {ROLES} and text as content, got {turn!r}")
    if turns[-1]["role"] != "user":
        raise ValueError("the last turn must be the user's: the model answers it")
    if not isinstance(entry["outcomes"], Mapping) or not entry["outcomes"]:
        raise ValueError(f"outcomes must map names to rules, got {entry['outcomes']!r}")
    system = "\n\n".join(str(entry[key]).strip() for key in ("system", "tools") if entry.get(key))
    outcomes = tuple(_outcome(str(name), rule) for name, rule in entry["outcomes"].items())
    return Scenario(
        str(entry["name"]), str(entry.get("about", "")), system, tuple(dict(turn) for turn in turns), outcomes
    )


def _outcome(name: str, rule: Any) -> Outcome:
    _keys(f"outcomes.{name}", rule, set(), {*KINDS, "unless", "begun"})
    kinds = [kind for kind in KINDS if kind in rule]
    if len(kinds) != 1:
        raise ValueError(f"outcomes.{name} must have one of {', '.join(KINDS)}, got {sorted(rule)}")
    patterns = {}
    for key in ("pattern", "unless"):
        try:
            patterns[key] = re.compile(rule[key], re.IGNORECASE) if key in rule else None
        except (re.error, TypeError) as error:
            raise ValueError(f"outcomes.{name}.{key} is no regular expression: {error}") from None
    choice = rule.get("choice", ())
    if choice and (
        not isinstance(choice, list) or len(choice) < 2 or not all(isinstance(c, str) and c for c in choice)
    ):
        raise ValueError(f"outcomes.{name}.choice must list two continuations at least, got {choice!r}")
    return Outcome(
        name,
        patterns["pattern"],
        patterns["unless"],
        tuple(choice),
        str(rule.get("begun", "")),
        rule.get("judge"),
    )


def _keys(where: str, entry: Any, required: set[str], optional: set[str]) -> None:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} must be a mapping, got {type(entry).__name__}")
    missing, unknown = required - set(entry), set(entry) - required - optional
    if missing:
        raise ValueError(f"{where} lacks {', '.join(sorted(missing))}")
    if unknown:
        raise ValueError(
            f"{where} has {', '.join(map(repr, sorted(map(str, unknown))))}, which mean nothing there"
        )
