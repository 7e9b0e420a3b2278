"""What a request asks for: a program, where it acts and what is read, as plain values that `extra_args` can hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from emosteer import spelling
from emosteer.models.positions import ENDLESS, Positions
from emosteer.programs import Program

from .reads import (
    READ,
    READ_AS,
    READ_BANK,
    READ_KEYS,
    READ_LAYERS,
    READ_POSITIONS,
    READ_UNIT,
    STOP_AT,
    Reads,
    spelled_bounds,
)

# The keys of a request's `extra_args`. The first is the program, and the next four only come with it; the last says
# how many tokens count as the prompt, where those that follow it in the prompt count as generated.
PROGRAM, BANK, LAYERS, POSITIONS, RELATIVE, PROMPT = (
    "emosteer",
    "emosteer_bank",
    "emosteer_layers",
    "emosteer_positions",
    "emosteer_relative",
    "emosteer_prompt",
)
WITH_PROGRAM = (BANK, LAYERS, POSITIONS, RELATIVE)
KEYS = (PROGRAM, *WITH_PROGRAM, PROMPT, *READ_KEYS)
# Entries of a list of layers, and characters of a name and of positions (a mask has one a token); what is longer is
# refused before it is looked at.
MOST_LAYERS, LONGEST_NAME, LONGEST_POSITIONS = 1000, 1000, 100_000


@dataclass(frozen=True)
class Asked:
    """A program and where it acts, and what is read.

    Attributes:
        program: what is done; None: what the engine does by default.
        bank: name of the bank, as the engine's settings give it; None: the only one.
        layers: as `es.steer` takes them, lists as tuples.
        positions: "all", "prompt", "generated", a slice or a mask, as text (`spelling.positions`).
        relative: strengths and bounds are fractions of each token's own norm.
        prompt: tokens that count as the prompt; None: all that were given.
        reads: what is read; None: nothing.
    """

    program: Program | None
    bank: str | None = None
    layers: Any = "middle"
    positions: str = "all"
    relative: bool = False
    prompt: int | None = None
    reads: Reads | None = None

    @classmethod
    def of(cls, extra_args: Mapping[str, Any] | None) -> Asked | None:
        """What the `extra_args` of a request ask for; None where they ask for nothing of ours.

        Raises:
            TypeError, ValueError: the key, what came and what is expected.
        """
        given = {key: value for key, value in (extra_args or {}).items() if str(key).startswith(PROGRAM)}
        if not given:
            return None
        unknown = [key for key in given if key not in KEYS]
        if unknown:
            raise ValueError(f"{_short(unknown[0])} is no key of emosteer; known are {', '.join(KEYS)}")
        alone = [key for key in given if key in WITH_PROGRAM]
        reads = Reads.of(given, _layers, _positions, _name)
        if PROGRAM not in given and (alone or reads is None):
            raise ValueError(
                f'{(alone or list(given))[0]} comes without a program; give "{PROGRAM}": "calm +0.05" too'
            )
        return cls(
            spelling.program(given[PROGRAM]) if PROGRAM in given else None,
            _name(given.get(BANK), BANK),
            _layers(given.get(LAYERS, "middle")),
            _positions(given.get(POSITIONS, "all")),
            _flag(given.get(RELATIVE, False)),
            _prompt(given.get(PROMPT)),
            reads,
        )

    @property
    def spec(self) -> Any:
        """`positions` as `es.steer` takes them."""
        return spelling.positions(self.positions)

    def over(self, default: Asked | None) -> Asked:
        """With the program of the default where this one names none, and the empty one where there is no default."""
        if self.program is not None:
            return self
        if default is None:
            return replace(self, program=Program())
        return replace(default, prompt=self.prompt, reads=self.reads)

    def extra_args(self) -> dict[str, Any]:
        """What `of` reads back."""
        said: dict[str, Any] = {}
        if self.program is not None:
            said[PROGRAM] = spelling.spelled(self.program)
            if self.bank is not None:
                said[BANK] = self.bank
            said[LAYERS] = list(self.layers) if isinstance(self.layers, tuple) else self.layers
            said[POSITIONS] = self.positions
            if self.relative:
                said[RELATIVE] = 1
        if self.prompt is not None:
            said[PROMPT] = self.prompt
        return said if self.reads is None else {**said, **self.reads.extra_args()}


def params(
    program: Program | str | None = None,
    *,
    bank: str | None = None,
    layers: Any = "middle",
    positions: Any = "all",
    relative: bool = False,
    prompt: int | None = None,
    read: str | Iterable[str] = (),
    stop_at: Mapping[str, float] | None = None,
    read_bank: str | None = None,
    read_layers: Any = None,
    read_positions: Any = slice(-1, None),
    read_as: str = "each",
    read_unit: str = "z",
) -> dict[str, Any]:
    """The `extra_args` of `vllm.SamplingParams` for a request that is to be steered or read; `vllm_xargs` over HTTP.

    It means what `es.steer` means by the same arguments. What is read comes back with the answer
    (`emosteer.vllm.readings`).

    Args:
        program: `es.add("calm", 0.05) + es.cap("desperate", 0.0)`, or its text, "calm +0.05; desperate <= 0"
            (`emosteer.spelling`); "none" leaves the request alone where the engine has a default program, None
            leaves it with that.
        bank: name of the bank, where the engine has several.
        layers: "middle", "all", numbers, fractions of the depth, several; or a text such as "12-21".
        positions: "all", "prompt", "generated", a slice or a bool mask over positions `[T]`; or a text such as "-1:"
            or "mask:0110".
        relative: strengths and bounds are fractions of each token's own norm.
        prompt: how many tokens count as the prompt; what follows them in what is given counts as generated.
        read: concepts to read.
        stop_at: concept → bound; a reading above it ends the request with the token that is drawn there.
        read_bank: name of the bank that is read with; that of the program by default.
        read_layers: where, of those that the engine's setting `readable` names; the one nearest to two thirds of the
            depth by default.
        read_positions: at which tokens; by default from the prompt's last on, whose readings are of the streams
            that the generated tokens are drawn from.
        read_as: "each" token by itself, or their "sum", "mean" or "max".
        read_unit: "z" or "projection", as `es.read` has them.

    Returns:
        strings, numbers and lists of them.

    Raises:
        TypeError, ValueError: the message names the argument. What only the engine knows, its banks and its
            depth, is checked there.
    """
    said: dict[str, Any] = {} if prompt is None else {PROMPT: prompt}
    if program is not None:
        if not isinstance(program, (Program, str)):
            raise TypeError(f"program must be a program or its text, got {type(program).__name__}")
        said[PROGRAM] = program if isinstance(program, str) else spelling.spelled(program)
        said |= {LAYERS: _listed(layers), POSITIONS: _worded(positions), RELATIVE: int(bool(relative))}
        if bank is not None:
            said[BANK] = bank
    read = read if isinstance(read, str) else list(read)
    if read or stop_at:
        said |= {READ_POSITIONS: _worded(read_positions), READ_AS: read_as, READ_UNIT: read_unit}
        if read:
            said[READ] = read
        if stop_at:
            said[STOP_AT] = spelled_bounds(stop_at)
        if read_layers is not None:
            said[READ_LAYERS] = _listed(read_layers)
        if read_bank is not None:
            said[READ_BANK] = read_bank
    asked = Asked.of(said)
    if asked is None:
        raise ValueError("nothing is asked for: give a program, or concepts to read")
    return asked.extra_args()


def _listed(layers: Any) -> Any:
    return layers if isinstance(layers, (str, int, float)) else list(layers)


def _worded(positions: Any) -> str:
    return positions if isinstance(positions, str) else spelling.spelled_positions(positions)


def _name(given: Any, key: str) -> str | None:
    if given is not None and (not isinstance(given, str) or len(given) > LONGEST_NAME):
        raise TypeError(f"{key} must be the name of a bank, got {_short(given)}")
    return given


def _prompt(given: Any) -> int | None:
    if given is not None and (
        isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= ENDLESS
    ):
        raise TypeError(f"{PROMPT} must be a number of tokens from 1 on, got {_short(given)}")
    return given


def _layers(given: Any, key: str = LAYERS) -> Any:
    if isinstance(given, (list, tuple)):
        if len(given) > MOST_LAYERS:
            raise ValueError(f"{key} has {len(given):,} entries, expected at most {MOST_LAYERS:,}")
        bad = [one for one in given if isinstance(one, bool) or not isinstance(one, (int, float))]
        if bad or not given:
            raise TypeError(f"{key} must be numbers, got {_short(bad[0] if bad else given)}")
        return tuple(given)
    if isinstance(given, bool) or not isinstance(given, (str, int, float)):
        raise TypeError(
            f'{key} must be a text such as "middle", a number or a list of them, got {_short(given)}'
        )
    if isinstance(given, str) and len(given) > LONGEST_NAME:
        raise ValueError(f"{key} is too long: {_short(given)}")
    found = spelling.layers(given)
    return tuple(found) if isinstance(found, list) else found


def _positions(given: Any, key: str = POSITIONS) -> str:
    if not isinstance(given, str):
        raise TypeError(f'{key} must be a text such as "generated" or "-1:", got {_short(given)}')
    if len(given) > LONGEST_POSITIONS:
        raise ValueError(f"{key} of {len(given):,} characters is too long: at most {LONGEST_POSITIONS:,}")
    try:
        numbers = Positions(spelling.positions(given), 1).numbers
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key}: {error}") from None
    if any(abs(number) > ENDLESS for number in numbers):
        raise ValueError(f"{key} has a number beyond every text: {_short(given)}")
    return given


def _flag(given: Any) -> bool:
    if given not in (0, 1, "0", "1", "true", "false"):
        raise TypeError(f"{RELATIVE} must be 0 or 1, got {_short(given)}")
    return given in (1, "1", "true")


def _short(value: Any) -> str:
    """How a value is shown to whoever sent it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
