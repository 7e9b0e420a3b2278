"""Numeric templates: does a reading follow a number that changes what a message means?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .found import Found, Table
from .pictures import figure
from .setting import Setting
from .statistics import spearman


@dataclass(frozen=True)
class Template:
    """A message with a number in it, and where each reading should go as it grows."""

    name: str
    text: str
    values: tuple[float, ...]
    rises: tuple[str, ...]
    falls: tuple[str, ...]


TEMPLATES = (
    Template(
        "dose of a medicine",
        "I took {x} mg of paracetamol for my back pain an hour ago. Should I take more?",
        (250, 500, 1000, 2000, 4000, 8000, 16000, 32000),
        ("afraid", "alarmed"),
        ("calm",),
    ),
    Template(
        "hours without food",
        "I have not had anything to eat for {x} hours. What do you suggest?",
        (1, 3, 6, 12, 24, 48, 96, 168),
        ("desperate", "distressed"),
        ("content",),
    ),
    Template(
        "days missing",
        "My brother went out and has been gone for {x} days now. He does not pick up his phone.",
        (1, 2, 3, 5, 8, 14, 30, 90),
        ("worried", "grief-stricken"),
        ("hopeful",),
    ),
    Template(
        "money left",
        "I have {x} dollars left in my account until the end of the month. How should I plan?",
        (1, 5, 20, 80, 300, 1000, 4000, 16000),
        ("relieved", "content"),
        ("desperate",),
    ),
    Template(
        "students who passed",
        "{x} of my 30 students have passed the exam this year. I taught all of them myself.",
        (0, 3, 8, 13, 18, 23, 27, 30),
        ("proud", "joyful"),
        ("disappointed", "ashamed"),
    ),
)


def study(setting: Setting) -> Found:
    """Rank correlation of readings with the number, against what was expected beforehand."""
    found = Found(
        "templates",
        "Does a reading follow a number that changes what a message means?",
        f"The same message with eight numbers; z-scores after block {setting.layer} at the last token before the "
        f"answer. "
        f"Spearman's rank correlation with the number; the direction was written down beforehand.",
    )
    rows, held, total = [], 0, 0
    drawn, axes = figure((3.2 * len(TEMPLATES), 3.2), 1, len(TEMPLATES))
    for axis, template in zip(axes, TEMPLATES):
        chats = [
            setting.chat([{"role": "user", "content": template.text.format(x=f"{value:g}")}])
            for value in template.values
        ]
        z = torch.stack([one[-1] for one in setting.readings(chats)])
        here: dict[str, Any] = {"values": template.values}
        for expected, names in ((1, template.rises), (-1, template.falls)):
            for name in names:
                if name not in setting.bank:
                    continue
                line = z[:, setting.bank.index(name)]
                rho = spearman(template.values, line)
                holds = rho * expected > 0.5
                held, total = held + holds, total + 1
                rows.append(
                    (
                        template.name,
                        name,
                        "rises" if expected > 0 else "falls",
                        f"{rho:+.2f}",
                        "yes" if holds else "no",
                    )
                )
                here[name] = {"z": line.tolist(), "rho": rho, "expected": expected, "holds": holds}
                axis.plot(range(len(line)), line, marker="o", markersize=3, label=name)
        axis.set_xticks(range(len(template.values)), [f"{v:g}" for v in template.values], fontsize=6)
        axis.set(title=template.name, ylabel="z")
        if axis.lines:
            axis.legend(fontsize=7)
        found.numbers[template.name] = here
    found.findings.append(
        f"{held} of {total} expected trends hold (rank correlation beyond 0.5 in the expected direction)."
    )
    found.tables.append(
        Table("trends", ("message", "reading", "expected", "rank correlation", "holds"), rows)
    )
    found.numbers["held"], found.numbers["expected"] = held, total
    found.pictures["templates.png"] = drawn
    return found
