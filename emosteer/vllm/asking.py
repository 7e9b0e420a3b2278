"""What a request asks for: a program and where it acts, as plain values that `extra_args` and `vllm_xargs` hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emosteer import spelling
from emosteer.models.positions import ENDLESS, Positions
from emosteer.programs import Program

# The keys of a request's `extra_args`. The first is the program; the others only come with it.
PROGRAM, BANK, LAYERS, POSITIONS, RELATIVE = (
    "emosteer",
    "emosteer_bank",
    "emosteer_layers",
    "emosteer_positions",
    "emosteer_relative",
)
KEYS = (PROGRAM, BANK, LAYERS, POSITIONS, RELATIVE)
# Entries of a list of layers, and characters of a name; what is longer is refused before it is looked at.
MOST_LAYERS, LONGEST_NAME = 1000, 1000


@dataclass(frozen=True)
class Asked:
    """A program and where it acts.

    Attributes:
        program: what is done.
        bank: name of the bank, as the engine's settings give it; None: the only one.
        layers: as `es.steer` takes them, lists as tuples.
        positions: "all", "prompt", "generated" or a slice as text (`spelling.positions`).
        relative: strengths and bounds are fractions of each token's own norm.
    """

    program: Program
    bank: str | None = None
    layers: Any = "middle"
    positions: str = "all"
    relative: bool = False

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
        if PROGRAM not in given:
            raise ValueError(
                f'{next(iter(given))} comes without a program; give "{PROGRAM}": "calm +0.05" too'
            )
        bank = given.get(BANK)
        if bank is not None and (not isinstance(bank, str) or len(bank) > LONGEST_NAME):
            raise TypeError(f"{BANK} must be the name of a bank, got {_short(bank)}")
        return cls(
            spelling.program(given[PROGRAM]),
            bank,
            _layers(given.get(LAYERS, "middle")),
            _positions(given.get(POSITIONS, "all")),
            _flag(given.get(RELATIVE, False)),
        )

    @property
    def spec(self) -> Any:
        """`positions` as `es.steer` takes them."""
        return spelling.positions(self.positions)

    def extra_args(self) -> dict[str, Any]:
        """What `of` reads back."""
        said: dict[str, Any] = {PROGRAM: spelling.spelled(self.program)}
        if self.bank is not None:
            said[BANK] = self.bank
        said[LAYERS] = list(self.layers) if isinstance(self.layers, tuple) else self.layers
        said[POSITIONS] = self.positions
        if self.relative:
            said[RELATIVE] = 1
        return said


def params(
    program: Program | str,
    *,
    bank: str | None = None,
    layers: Any = "middle",
    positions: Any = "all",
    relative: bool = False,
) -> dict[str, Any]:
    """The `extra_args` of `vllm.SamplingParams` for a request that is to be steered; `vllm_xargs` over HTTP.

    It means what `es.steer` means by the same arguments.

    Args:
        program: `es.add("calm", 0.05) + es.cap("desperate", 0.0)`, or its text, "calm +0.05; desperate <= 0"
            (`emosteer.spelling`); "none" leaves the request alone where the engine has a default program.
        bank: name of the bank, where the engine has several.
        layers: "middle", "all", numbers, fractions of the depth, several; or a text such as "12-21".
        positions: "all", "prompt", "generated" or a slice; or a text such as "-1:".
        relative: strengths and bounds are fractions of each token's own norm.

    Returns:
        strings, numbers and lists of them.

    Raises:
        TypeError, ValueError: the message names the argument. What only the engine knows, its banks and its
            depth, is checked there.
    """
    if not isinstance(program, (Program, str)):
        raise TypeError(f"program must be a program or its text, got {type(program).__name__}")
    if isinstance(program, str):
        program = spelling.program(program)
    if not isinstance(positions, str):
        positions = spelling.spelled_positions(positions)
    if not isinstance(layers, (str, int, float)):
        layers = list(layers)
    asked = Asked(program, bank, _layers(layers), _positions(positions), bool(relative))
    return asked.extra_args()


def _layers(given: Any) -> Any:
    if isinstance(given, (list, tuple)):
        if len(given) > MOST_LAYERS:
            raise ValueError(f"{LAYERS} has {len(given):,} entries, expected at most {MOST_LAYERS:,}")
        bad = [one for one in given if isinstance(one, bool) or not isinstance(one, (int, float))]
        if bad or not given:
            raise TypeError(f"{LAYERS} must be numbers, got {_short(bad[0] if bad else given)}")
        return tuple(given)
    if isinstance(given, bool) or not isinstance(given, (str, int, float)):
        raise TypeError(
            f'{LAYERS} must be a text such as "middle", a number or a list of them, got {_short(given)}'
        )
    if isinstance(given, str) and len(given) > LONGEST_NAME:
        raise ValueError(f"{LAYERS} is too long: {_short(given)}")
    found = spelling.layers(given)
    return tuple(found) if isinstance(found, list) else found


def _positions(given: Any) -> str:
    if not isinstance(given, str) or len(given) > LONGEST_NAME:
        raise TypeError(f'{POSITIONS} must be a text such as "generated" or "-1:", got {_short(given)}')
    try:
        numbers = Positions(spelling.positions(given), 1).numbers
    except (TypeError, ValueError) as error:
        raise ValueError(f"{POSITIONS}: {error}") from None
    if any(abs(number) > ENDLESS for number in numbers):
        raise ValueError(f"{POSITIONS} has a number beyond every text: {_short(given)}")
    return given


def _flag(given: Any) -> bool:
    if given not in (0, 1, "0", "1", "true", "false"):
        raise TypeError(f"{RELATIVE} must be 0 or 1, got {_short(given)}")
    return given in (1, "1", "true")


def _short(value: Any) -> str:
    """How a value is shown to whoever sent it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
