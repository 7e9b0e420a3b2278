"""How the length of a model's residual stream is spread: `python bench/stream.py`.

Of the shipped neutral texts, each by itself, tokens from the second on (the first of a text is an attention sink):
the mean length after each block, the mean size of its largest coordinate, the mean length of all others, and the
mean share of that coordinate in the squared length. Writes bench/results/stream.csv.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from common import machine, save

import emosteer as es

MODELS, TEXTS = ("smollm2", "gemma3-270m"), 16


@dataclass
class Spread:
    """After one block: lengths in the model's own units, and a share of 1."""

    model: str
    block: int
    length: float
    largest: float
    rest: float
    share: float

    def row(self) -> dict:
        return {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in asdict(self).items()}


@torch.no_grad()
def spread(name: str) -> list[Spread]:
    model, tok = es.load(name)
    streams: list[list[torch.Tensor]] = []
    for text in es.emotions.neutral()[:TEXTS]:
        states = model(**tok(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        streams.append([state[0, 1:].double() for state in states[1:-1]])  # the last is normalised
    found = []
    for block, parts in enumerate(zip(*streams)):
        x = torch.cat(parts)
        length, largest = x.norm(dim=1), x.abs().amax(1)
        rest = (length.square() - largest.square()).sqrt()
        share = (largest / length).square()
        means = (value.mean().item() for value in (length, largest, rest, share))
        found.append(Spread(name, block, *means))
    return found


def main() -> None:
    print(machine())
    print(save("stream", [row for name in MODELS for row in spread(name)]))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
