"""Programs, layers and positions as text: what a shell, an HTTP request or a file can say.

A program is a list of clauses, one a direction, divided by semicolons:

    calm +0.05; desperate <= 0

| clause | program |
| --- | --- |
| `calm +0.05`, `calm -0.05` | `add("calm", 0.05)`, `add("calm", -0.05)` |
| `desperate <= 0` | `cap("desperate", 0)` |
| `calm >= 0.1` | `floor("calm", 0.1)` |
| `calm = 0.1` | `hold("calm", 0.1)`; `calm = 0` is `ablate("calm")` |
| `calm turned 30°` | `rotate("calm", 30)`; `turned 0.5rad` in radians |
| `norm: kept`, `norm: free` | `preserve_norm=True`, `preserve_norm=False` for the whole program |
| `none` | the empty program |

One clause may do several things to its direction, each at most once: `calm +0.05 <= 0.3`. A concept whose name is
more than letters, digits, spaces and any of `_-.'/&()` is written in double quotes, as JSON has it.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from . import programs as verbs
from .programs import Program, Slot, _finite

# Characters of a program's text; what is longer is no program that somebody wrote.
LONGEST = 10_000
# Blocks that a range may name; no model has more.
MOST_LAYERS = 10_000

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_ACTION = re.compile(
    rf"\s+(?:(?P<bound><=|>=|=)\s*(?P<at>{_NUMBER})|turned\s+(?P<angle>{_NUMBER})\s*(?P<unit>°|deg|rad)?"
    rf"|(?P<push>[+-]\s*(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?))(?=\s|$)"
)
_PLAIN_NAME = re.compile(r"[\w.'/&()-]+(?: [\w.'/&()-]+)*")
_QUOTED_NAME = re.compile(r'\s*("(?:[^"\\]|\\.)*")')
_CLAUSE = re.compile(r'(?:[^;"]|"(?:[^"\\]|\\.)*"|")+')
_IN_VERBS = re.compile(
    rf"(?P<verb>add|cap|floor|hold|rotate)\s+(?P<name>.+?)\s+(?P<number>{_NUMBER})|ablate\s+(?P<ablated>.+)"
)
_FORMS = "calm +0.05, calm -0.05, calm <= 0.1, calm >= 0.1, calm = 0.1 or calm turned 30°"


def program(text: str) -> Program:
    """The program that a text spells; `spelled` writes it.

    Raises:
        TypeError: not a text.
        ValueError: the clause that is not understood, or the number that cannot be, and what is understood.
    """
    if not isinstance(text, str):
        raise TypeError(f'a program must be a text like "calm +0.05; desperate <= 0", got {text!r}')
    if len(text) > LONGEST:
        raise ValueError(f"a program of {len(text):,} characters is too long: at most {LONGEST:,}")
    if text.strip() == "none":
        return Program()
    preserve_norm: bool | None = None
    slots = []
    for clause in _CLAUSE.findall(text):
        if not clause.strip():
            continue
        about, colon, form = clause.partition(":")
        if colon and about.strip() == "norm":
            if form.strip() not in ("kept", "free") or preserve_norm is not None:
                raise ValueError(
                    f'program {text!r}: say "norm: kept" or "norm: free", once; got {clause.strip()!r}'
                )
            preserve_norm = form.strip() == "kept"
        else:
            slots.append(_slot(clause, text))
    if not slots:
        raise ValueError(f'program {text!r} names no concept; write {_FORMS}, or "none" for no steering')
    return Program(tuple(slots), preserve_norm)


def program_of(given: Program | str | None) -> Program:
    """A program as it is, the empty one for None, or what `program` makes of a text.

    Raises:
        TypeError: none of these.
        ValueError: as `program`; of a text in verbs, such as "add calm 0.1", how it is written.
    """
    if given is None or isinstance(given, Program):
        return given or Program()
    meant = _in_verbs(given) if isinstance(given, str) else None
    if meant is not None:
        raise ValueError(
            f'program {given!r}: write "{spelled(meant)}"; a concept that is called so stands in double quotes'
        )
    return program(given)


def _in_verbs(text: str) -> Program | None:
    """What a text of verbs, concepts and numbers means, terms joined by " + "; None of any other."""
    total = Program()
    for term in text.split(" + "):
        found = _IN_VERBS.fullmatch(term.strip())
        if found is None:
            return None
        if found["ablated"]:
            total += verbs.ablate(found["ablated"])
        else:
            total += getattr(verbs, found["verb"])(found["name"], float(found["number"]))
    return total


def spelled(program: Program) -> str:
    """The text that `program` reads back as the same program, to the bit of every number."""
    if not program.slots:
        return "none"
    clauses = [_clause(slot) for slot in program.slots]
    if program.preserve_norm is not None:
        clauses.append("norm: kept" if program.preserve_norm else "norm: free")
    return "; ".join(clauses)


def _slot(clause: str, text: str) -> Slot:
    quoted = _QUOTED_NAME.match(clause)
    if quoted:
        try:
            name = json.loads(quoted[1])
        except ValueError:
            raise ValueError(
                f"program {text!r}: {quoted[1]} is not a name in double quotes as JSON has it"
            ) from None
        rest = clause[quoted.end() :]
    else:
        first = _ACTION.search(clause)
        name = clause[: first.start()].strip() if first else clause.strip()
        rest = clause[first.start() :] if first else ""
        if not _PLAIN_NAME.fullmatch(name):
            raise ValueError(
                f"program {text!r}: {clause.strip()!r} is not understood; a clause is a concept and what to do, "
                f"like {_FORMS}"
            )
    found: dict[str, float] = {}
    at = 0
    while rest[at:].strip():
        action = _ACTION.match(rest, at)
        if action is None:
            break
        at = action.end()
        for key, value in _meant(action).items():
            if key in found:
                raise ValueError(f"program {text!r}: {clause.strip()!r} says twice what to do with {name!r}")
            found[key] = _finite("a number", value)
    if rest[at:].strip() or not found:
        raise ValueError(
            f"program {text!r}: {clause.strip()!r} does not say what to do with {name!r}; write {_FORMS}"
        )
    slot = Slot(name, **found)
    if not slot.low <= slot.high:
        raise ValueError(f"program {text!r}: {name!r} cannot be both >= {slot.low:g} and <= {slot.high:g}")
    if abs(slot.rotate) > math.pi:
        raise ValueError(f"program {text!r}: an angle must lie between -180° and 180°")
    return slot


def _meant(action: re.Match[str]) -> dict[str, float]:
    if action["bound"]:
        value = float(action["at"])
        return {"<=": {"high": value}, ">=": {"low": value}, "=": {"low": value, "high": value}}[
            action["bound"]
        ]
    if action["angle"]:
        angle = float(action["angle"])
        return {"rotate": angle if action["unit"] == "rad" else math.radians(angle)}
    return {"strength": float(action["push"].replace(" ", ""))}


def _clause(slot: Slot) -> str:
    plain = _PLAIN_NAME.fullmatch(slot.name) and slot.name != "none"
    parts = [slot.name if plain else json.dumps(slot.name)]
    if slot.strength or not (slot.clamps or slot.rotate):
        parts.append(f"{'' if math.copysign(1, slot.strength) < 0 else '+'}{_number(slot.strength)}")
    if slot.low == slot.high:
        parts.append(f"= {_number(slot.low)}")
    else:
        parts += [f">= {_number(slot.low)}"] if slot.low > -math.inf else []
        parts += [f"<= {_number(slot.high)}"] if slot.high < math.inf else []
    if slot.rotate:
        degrees = round(math.degrees(slot.rotate), 9)
        exact = math.radians(degrees) == slot.rotate
        parts.append(f"turned {_number(degrees)}°" if exact else f"turned {_number(slot.rotate)}rad")
    return " ".join(parts)


def _number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def layers(text: Any) -> Any:
    """What `es.steer` takes as `layers`: "middle", "all", "14", "12-21", "3,7,11" or a fraction of the depth, "0.66".

    Several may be joined by "+" too, where a comma has another meaning. Numbers stay as they are, and so do those of a
    list, whose texts are read one by one.

    Raises:
        ValueError: what came and what is understood.
    """
    if isinstance(text, (list, tuple)):
        read = [layers(part) if isinstance(part, str) else part for part in text]
        return [one for part in read for one in (part if isinstance(part, list) else [part])]
    if not isinstance(text, str):
        return text
    if text in ("all", "middle"):
        return text
    found: list[Any] = []
    for part in text.replace("+", ",").split(","):
        first, dash, last = part.strip().partition("-")
        try:
            if dash:
                if int(last) - int(first) > MOST_LAYERS:
                    raise ValueError
                found += range(int(first), int(last) + 1)
            else:
                found.append(float(first) if "." in first else int(first))
        except ValueError:
            raise ValueError(
                f'layers must be like "middle", "all", "14", "12-21", "3,7,11" or "0.66", got {text!r}'
            ) from None
    return found[0] if len(found) == 1 else found


def positions(text: str) -> Any:
    """What `es.steer` takes as `positions`, from "all", "prompt", "generated", a slice such as "-1:" or "0:40:2", or a
    mask over positions, "mask:0110": one digit a token of the text, 0 for all that follow.

    Raises:
        ValueError: what came and what is understood.
    """
    if text in ("all", "prompt", "generated"):
        return text
    first, *others = text.split(":") if isinstance(text, str) else [""]
    if first == "mask" and len(others) == 1 and others[0] and not others[0].strip("01"):
        import torch

        return torch.frombuffer(bytearray(others[0], "ascii"), dtype=torch.uint8) == ord("1")
    try:
        if 1 <= len(others) <= 2:
            return slice(*(int(part) if part.strip() else None for part in (first, *others)))
    except ValueError:
        pass
    raise ValueError(
        f'positions must be "all", "prompt", "generated", a slice such as "-1:" or "mask:0110", got {text!r:.80}'
    )


def spelled_positions(spec: Any) -> str:
    """The text that `positions` reads back.

    Raises:
        TypeError: neither a word, a slice nor a mask over the positions of one text.
    """
    if isinstance(spec, str):
        return spec
    if isinstance(spec, slice):
        parts = [spec.start, spec.stop] + ([spec.step] if spec.step is not None else [])
        return ":".join("" if part is None else str(part) for part in parts)
    import torch

    mask = torch.as_tensor(spec)
    if mask.dtype != torch.bool or mask.ndim != 1 or not len(mask):
        raise TypeError(
            f"a mask over positions must here be bool and of one text, [T], got {mask.dtype} {list(mask.shape)}"
        )
    return "mask:" + (mask.cpu().to(torch.uint8) + ord("0")).numpy().tobytes().decode()
