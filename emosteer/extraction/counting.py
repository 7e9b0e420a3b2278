"""The pass itself: texts stream by in batches, and everything is counted at every wanted layer."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence, Sized
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from emosteer.models.batching import WINDOW, Batch, Text, batches, counted_from, longest, tokenised, windows
from emosteer.models.blocks import resolve_layers
from emosteer.models.capture import Capture, name_of
from emosteer.models.progress import Progress

from .collected import NEUTRAL, Collected
from .sharing import merged, process_group
from .state import SPREAD_STRIDE, Checkpoint, Fingerprint, LayerMoments

# How many times as long as the others a first token's residual must be to be called an attention sink.
SINK = 10.0
NOT_FINITE = ("raise", "skip")
SKIP_HINT = '; not_finite="skip" leaves such texts out'


class Counting:
    """Everything that is counted while texts stream by; the arguments are `extract`'s."""

    def __init__(
        self,
        model: Any,
        tok: Any,
        *,
        layers: Any,
        skip_tokens: int,
        within: bool,
        batch_tokens: int,
        token_weight: Callable[[Sequence[int]], Sequence[float]] | None,
        checkpoint: str | os.PathLike[str] | None,
        not_finite: str = "raise",
    ) -> None:
        if not_finite not in NOT_FINITE:
            raise ValueError(f"not_finite must be one of {', '.join(NOT_FINITE)}, got {not_finite!r}")
        if not isinstance(skip_tokens, int) or skip_tokens < 0:
            raise ValueError(f"skip_tokens must be an integer of at least 0, got {skip_tokens!r}")
        if not isinstance(batch_tokens, int) or batch_tokens < 1:
            raise ValueError(f"batch_tokens must be an integer of at least 1, got {batch_tokens!r}")
        self.tok, self.skip_tokens, self.within = tok, skip_tokens, within
        self.batch_tokens, self.token_weight = batch_tokens, token_weight
        self.capture = Capture(model, (0,), kernel_norms=True)
        self.layers = resolve_layers(layers, self.capture.decoder.depth)
        self.capture.layers = self.layers
        self.model_name, self.revision = name_of(model)
        self.device = self.capture.device or torch.device("cpu")
        self.moments = {layer: self._moments(1) for layer in self.layers}
        self.names: list[str] = []
        self.index: dict[str, int] = {}
        self.counts = {"stories": 0, NEUTRAL: 0}
        self.fingerprint = Fingerprint()
        self.longest = longest(tok, model)
        self.rank, self.world = process_group()
        identity = {
            "model": self.model_name,
            "layers": list(self.layers),
            "skip_tokens": skip_tokens,
            "within": within,
            "batch_tokens": batch_tokens,
            "device": self.device.type,  # batches depend on it
            "rank": [self.rank, self.world],
        }
        if checkpoint is not None and self.world > 1:
            checkpoint = f"{os.fspath(checkpoint)}.{self.rank}"
        self.checkpoint = Checkpoint(checkpoint, identity)
        self.not_finite = not_finite
        self.first = {layer: torch.zeros(2, dtype=torch.float64, device=self.device) for layer in self.layers}
        self.left_out: dict[str, list[int]] = {"stories": [], NEUTRAL: []}
        self.batches_done = 0
        self._unsaved = 0  # tokens
        self._to_skip = 0
        self._expected = ""
        self._resume()

    def _moments(self, groups: int) -> LayerMoments:
        return LayerMoments(groups, self.capture.decoder.dim, self.within, self.device)

    # ---- counting -----------------------------------------------------------------------------------

    def count(self, texts: Iterable[Any], bar: Progress, kind: str) -> None:
        """Count all texts of a kind, window by window."""
        bar.begin(kind, len(texts) if isinstance(texts, Sized) else None)
        for window in windows(texts, WINDOW):
            pairs = [_pair(item, self.counts[kind] + i) for i, item in enumerate(window)]
            self.fingerprint.add(kind, pairs)
            groups = [self._group_of(label) if kind == "stories" else 0 for label, _ in pairs]
            for one in self.moments.values():
                one.grow(len(self.names))
            mine = range(self.rank, len(pairs), self.world)
            texts_here = tokenised(
                self.tok,
                [pairs[i][1] for i in mine],
                [groups[i] for i in mine],
                self.longest,
                [self.counts[kind] + i for i in mine],
            )
            self.counts[kind] += len(pairs)
            if self.not_finite == "skip":
                texts_here = self._finite(texts_here, kind)
            padded = self.capture.padded
            for batch in batches(texts_here, self.batch_tokens, device=self.device, padded=padded):
                if self._already_counted():
                    bar.advance(len(batch.texts) * self.world)
                    continue
                self._count_batch(batch, kind)
                self.batches_done += 1
                self._unsaved += batch.ids.numel()
                if 2 * self._unsaved > self.batch_tokens:  # a CPU's batches are smaller than was asked for
                    self._save()
                bar.advance(len(batch.texts) * self.world)

    def _group_of(self, label: str) -> int:
        if label not in self.index:
            self.index[label] = len(self.names)
            self.names.append(label)
        return self.index[label]

    def _count_batch(self, batch: Batch, kind: str) -> None:
        ids = batch.ids.to(self.device)
        group = torch.full(ids.shape, -1, dtype=torch.int32)
        weight = torch.zeros(ids.shape)
        for row, text in enumerate(batch.texts):
            first, end = counted_from(len(text.ids), self.skip_tokens), len(text.ids)
            group[row, first:end] = text.group
            weight[row, first:end] = self._weights(text, first)
        counted = group >= 0
        at = counted.flatten().nonzero().flatten()
        # Rows are picked before the second moment is taken: its cost is that of the rows it is given.
        picked = (at if kind == NEUTRAL else at[::SPREAD_STRIDE]).to(self.device)
        group, weight, counted = (t.to(self.device) for t in (group, weight, counted))

        wrong: dict[int, Tensor] = {}
        sinks = bool((group[:, 0] >= 0).any())

        def see(layer: int, hidden: Tensor) -> None:
            moments = self.moments[layer]
            rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, picked)
            norms = torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float32)
            wrong[layer] = (counted & ~torch.isfinite(norms)).any(1)
            if kind == NEUTRAL:
                moments.neutral.update(rows)
                return
            moments.stories.update(hidden, group, weight)
            moments.spread.update(rows)
            if sinks:
                first = norms[:, 0][counted[:, 0]]
                self.first[layer] += torch.stack(
                    [first.sum(dtype=torch.float64), first.new_tensor(len(first))]
                )
            moments.norm[0] += torch.where(counted, norms, 0.0).sum(dtype=torch.float64)
            moments.norm[1] += len(at)

        self.capture.run(ids, see)
        for layer, row in torch.stack(list(wrong.values())).nonzero().tolist():
            text = batch.texts[row]
            label = NEUTRAL if kind == NEUTRAL else self.names[text.group]
            what = f"text {text.number} ({label})"
            raise ValueError(
                f"{what} has residuals at layer {self.layers[layer]} that are not finite{SKIP_HINT}"
            )

    def _finite(self, texts: list[Text], kind: str) -> list[Text]:
        """The texts whose residuals are finite at every layer: a pass of its own, before anything is counted."""
        kept = []
        for batch in batches(texts, self.batch_tokens, device=self.device, padded=self.capture.padded):
            bad = torch.zeros(len(batch.texts), dtype=torch.bool, device=self.device)
            counted = torch.zeros(batch.ids.shape, dtype=torch.bool)
            for row, text in enumerate(batch.texts):
                counted[row, counted_from(len(text.ids), self.skip_tokens) : len(text.ids)] = True
            counted = counted.to(self.device)

            def see(_layer: int, hidden: Tensor, bad: Tensor = bad, counted: Tensor = counted) -> None:
                norms = torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float32)
                bad |= (counted & ~torch.isfinite(norms)).any(1)

            self.capture.run(batch.ids.to(self.device), see)
            for text, out in zip(batch.texts, bad.tolist()):
                if out:
                    self.left_out[kind].append(text.number)
                else:
                    kept.append(text)
        return kept

    def _weights(self, text: Text, first: int) -> Tensor | float:
        """Weights of a text's counted tokens, which sum to 1."""
        if self.token_weight is None:
            return 1.0 / (len(text.ids) - first)
        weights = torch.as_tensor(self.token_weight(text.ids), dtype=torch.float32)
        if weights.shape != (len(text.ids),) or not bool((weights >= 0).all()):
            raise ValueError(
                f"token_weight must give {len(text.ids)} weights that are not negative for {len(text.ids)} tokens, "
                f"got shape {list(weights.shape)}"
            )
        weights = weights[first:]
        if not float(weights.sum()) > 0:
            raise ValueError("token_weight gave a text no weight after the tokens that are skipped")
        return weights / weights.sum()

    # ---- checkpoints --------------------------------------------------------------------------------

    def _resume(self) -> None:
        found = self.checkpoint.load()
        if found is None:
            return
        note, tensors = found
        self._to_skip = self.batches_done = int(note["batches"])
        self._expected = note["texts"]
        for layer in self.layers:
            state = {name.split("/", 1)[1]: t for name, t in tensors.items() if name.startswith(f"{layer}/")}
            groups = state["stories.count"].shape[0]
            self.moments[layer] = self._moments(groups)
            self.moments[layer].load(state)

    def _already_counted(self) -> bool:
        if not self._to_skip:
            return False
        self._to_skip -= 1
        if not self._to_skip and self.fingerprint.hexdigest() != self._expected:
            raise ValueError(
                f"checkpoint {self.checkpoint.path} was made from other texts; delete it, or give another path"
            )
        return True

    def _save(self) -> None:
        self._unsaved = 0
        if self.checkpoint.path is None:
            return
        tensors = {
            f"{layer}/{name}": t for layer, one in self.moments.items() for name, t in one.state().items()
        }
        note = {"batches": self.batches_done, "texts": self.fingerprint.hexdigest()}
        self.checkpoint.save(note, tensors)

    # ---- the end ------------------------------------------------------------------------------------

    def finish(self) -> Collected:
        """Everything that was counted, by all processes of a group."""
        if self._to_skip:
            raise ValueError(f"checkpoint {self.checkpoint.path} counted more texts than came now")
        if not self.names:
            raise ValueError("stories is empty: give (label, text) pairs of at least two labels")
        alone = next(iter(self.moments.values())).stories.count
        empty = [name for name, n in zip(self.names, alone.tolist()) if not n]
        if empty and self.world == 1:
            raise ValueError(
                f"every text of {', '.join(empty[:5])} was left out: its residuals are not finite"
            )
        self._warn_of_sinks()
        if self.world > 1:
            for layer, mine in self.moments.items():
                self.moments[layer] = merged(mine, lambda: self._moments(len(self.names)))
        return Collected(
            tuple(self.names),
            self.moments,
            {
                "model": self.model_name,
                "revision": self.revision,
                "skip_tokens": self.skip_tokens,
                "texts": dict(self.counts),
                **({"left_out": self.left_out} if any(self.left_out.values()) else {}),
                "corpus": self.fingerprint.hexdigest(),
                "versions": {name: _version(name) for name in ("emosteer", "torch", "transformers")},
            },
        )

    def _warn_of_sinks(self) -> None:
        """Say where first tokens were counted whose residual is far longer than all others' (attention sinks)."""
        worst, at = 0.0, 0
        for layer, first in self.first.items():
            total, n = (self.moments[layer].norm - first).tolist()
            if float(first[1]) and n > 0 and total > 0:
                ratio = float(first[0] / first[1]) / (total / n)
                worst, at = max((worst, at), (ratio, layer))
        if worst > SINK:
            warnings.warn(
                f"the first token of a text counts, and its residual at layer {at} is {worst:.0f} times as long as "
                f"the others': an attention sink, which says nothing of the text but sways directions and scale; "
                f"pass skip_tokens=1 or more, and texts of more than one token",
                stacklevel=5,
            )


def _pair(item: Any, number: int) -> tuple[str, Any]:
    try:
        label, text = item
    except (TypeError, ValueError):
        raise TypeError(f"story {number} must be a (label, text) pair, got {type(item).__name__}") from None
    chat = isinstance(text, (list, tuple))
    if not isinstance(label, str) or not (isinstance(text, str) or chat):
        raise TypeError(
            f"story {number} must be a (label, text) pair, a string and a string or a chat, "
            f"got {type(label).__name__}, {type(text).__name__}"
        )
    return label, text


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
