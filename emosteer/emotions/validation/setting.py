"""What all studies share: the model, its directions, and steered runs in mixed batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emosteer.bank import Bank
from emosteer.calibration.grid import with_random
from emosteer.extraction import Collected
from emosteer.models.capture import Capture
from emosteer.models.patching import evaluating
from emosteer.models.scoring import continuation_log_probabilities, device_of, padded
from emosteer.programs import Program
from emosteer.steering import steer
from emosteer.zscores import ZScores

from ..ratings import Ratings

# Rows times columns of a batch.
BATCH_TOKENS = 4096
RANDOM_DIRECTIONS = 4

Tokens = list[int]


@dataclass
class Setting:
    """One validation.

    Attributes:
        model, tok: what is studied.
        stories: emotion, topic and text of each story that was counted.
        collected: moments with one label a story: "0", "1", …
        bank: directions of the emotions at every layer.
        layer: where readings are taken, the one nearest to two thirds of the depth.
        layers: where steering acts.
        concepts: the emotions that are steered towards.
        strengths: fractions of the mean residual norm, ascending, at each steered layer.
        quick: fewer of everything.
        seed: of all draws.
        ratings: human valence and arousal of the user's own; None: vaderSentiment's and Russell's.
        bench_data: a folder of other authors' stories; None: there is none.
        judges: name → function of a text that says whether an outcome happened.
    """

    model: Any
    tok: Any
    stories: Sequence[Any]
    collected: Collected
    bank: Bank
    layer: int
    layers: tuple[int, ...]
    concepts: tuple[str, ...]
    strengths: tuple[float, ...]
    quick: bool = False
    seed: int = 0
    ratings: Ratings | None = None
    bench_data: Path | None = None
    judges: dict[str, Callable[[str], bool]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scores = ZScores(self.bank, self.layer)
        self.random = tuple(f"random {k}" for k in range(RANDOM_DIRECTIONS))
        self.steering_bank = with_random(self.bank, self.concepts, RANDOM_DIRECTIONS, self.seed)
        pad = self.tok.pad_token_id
        self.pad = 0 if pad is None else pad

    # ---- texts ------------------------------------------------------------------------------------

    def chat(self, turns: Sequence[dict[str, str]], *, answer: bool = True, begun: str = "") -> Tokens:
        """Token ids of a conversation, up to where the assistant speaks (and what it has `begun` to say)."""
        if getattr(self.tok, "chat_template", None):
            text = self.tok.apply_chat_template(list(turns), add_generation_prompt=answer, tokenize=False)
            return list(self.tok(text + begun, add_special_tokens=False).input_ids)
        lines = [f"{turn['role'].capitalize()}: {turn['content']}\n" for turn in turns]
        text = "".join(lines) + ("Assistant:" if answer else "")
        return list(self.tok(text + (" " + begun if begun else "")).input_ids)

    def word(self, text: str) -> Tokens:
        """Token ids of what goes on in the middle of a text."""
        return list(self.tok(text, add_special_tokens=False).input_ids)

    def text(self, ids: Sequence[int]) -> str:
        return self.tok.decode(list(ids), skip_special_tokens=True)

    # ---- runs -------------------------------------------------------------------------------------

    def batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Numbers of units, those of similar length together, under the budget."""
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        while order:
            rows = max(BATCH_TOKENS // max(lengths[order[0]], 1), 1)
            yield order[:rows]
            order = order[rows:]

    def log_probabilities(
        self,
        prompts: Sequence[Tokens],
        continuations: Sequence[Tokens],
        programs: Sequence[Program | None] | None = None,
    ) -> list[float]:
        """Summed log-probability of each continuation, each row under its own program."""
        found = [0.0] * len(prompts)
        lengths = [len(p) + len(c) for p, c in zip(prompts, continuations)]
        for batch in self.batches(lengths):
            with self.steered([None if programs is None else programs[i] for i in batch]):
                scores = continuation_log_probabilities(
                    self.model, [prompts[i] for i in batch], [continuations[i] for i in batch], pad=self.pad
                )
            for i, score in zip(batch, scores):
                found[i] = float(score.sum())
        return found

    def next_token(
        self,
        prompts: Sequence[Tokens],
        tokens: Sequence[int],
        programs: Sequence[Program | None] | None = None,
        masks: Sequence[Sequence[bool]] | None = None,
    ) -> Tensor:
        """float32 `[N, len(tokens)]`: log-probabilities of some next tokens after each prompt.

        Args:
            masks: the tokens of each prompt that are steered; None: all.
        """
        found = torch.empty(len(prompts), len(tokens))
        for batch in self.batches([len(p) for p in prompts]):
            ids, attention = padded([prompts[i] for i in batch], self.pad, device_of(self.model))
            where: Any = "all"
            if masks is not None:
                where = torch.zeros(len(batch), ids.shape[1], dtype=torch.bool)
                for row, i in enumerate(batch):
                    where[row, : len(masks[i])] = torch.tensor(list(masks[i]), dtype=torch.bool)
            with (
                self.steered([None if programs is None else programs[i] for i in batch], where),
                evaluating(self.model),
                torch.no_grad(),
            ):
                logits = self.model(
                    input_ids=ids,
                    attention_mask=attention,
                    position_ids=(attention.cumsum(1) - 1).clamp(min=0),
                    use_cache=False,
                    logits_to_keep=1,
                ).logits[:, -1]
            found[batch] = logits.float().log_softmax(-1)[:, list(tokens)].cpu()
        return found

    def generate(
        self,
        prompts: Sequence[Tokens],
        programs: Sequence[Program | None] | None = None,
        *,
        max_new_tokens: int = 40,
        sample: bool = False,
        rows: int = 64,
    ) -> list[Tokens]:
        """Continuations, greedy or sampled, each row under its own program; the end of text is cut off."""
        ends = self.model.generation_config.eos_token_id
        ends = set(ends) if isinstance(ends, (list, tuple)) else {ends}
        found: list[Tokens] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        device = device_of(self.model)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            for start in range(0, len(order), rows):
                batch = order[start : start + rows]
                ids, mask = padded([prompts[i] for i in batch], self.pad, device)
                with (
                    self.steered([None if programs is None else programs[i] for i in batch]),
                    torch.no_grad(),
                ):
                    out = self.model.generate(
                        input_ids=ids,
                        attention_mask=mask,
                        max_new_tokens=max_new_tokens,
                        do_sample=sample,
                        pad_token_id=self.pad,
                    )
                for i, row in zip(batch, out[:, ids.shape[1] :].tolist()):
                    stop = next((j for j, token in enumerate(row) if token in ends), len(row))
                    found[i] = row[:stop]
        return found

    def steered(self, programs: Sequence[Program | None], positions: Any = "all") -> Any:
        """The model under a program a row, at the setting's layers."""
        return steer(self.model, self.steering_bank, list(programs), layers=self.layers, positions=positions)

    def readings(self, rows: Sequence[Tokens]) -> list[Tensor]:
        """float32 `[T, K]` each: z-scores of every token of every text at the reading layer."""
        found: list[Tensor] = [torch.empty(0)] * len(rows)
        capture = Capture(self.model, [self.layer])
        lengths = [len(row) for row in rows]
        alike = sorted(set(lengths))
        groups = (
            [range(len(rows))]
            if capture.padded
            else [[i for i in range(len(rows)) if lengths[i] == n] for n in alike]
        )
        for batch in ([g[i] for i in some] for g in groups for some in self.batches([lengths[i] for i in g])):
            width = max(len(rows[i]) for i in batch)
            ids = torch.tensor([rows[i] + [self.pad] * (width - len(rows[i])) for i in batch])

            def see(_layer: int, hidden: Tensor, batch: list[int] = batch) -> None:
                z = self.scores(hidden).cpu()
                for row, i in enumerate(batch):
                    found[i] = z[row, : len(rows[i])].clone()

            capture.run(ids.to(capture.device), see)
        return found
