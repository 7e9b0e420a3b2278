"""Texts → bank: one streaming pass over all wanted layers, and directions from its moments."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence, Sized
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from . import directions as methods
from .bank import Bank
from .extraction_state import SPREAD_STRIDE, Checkpoint, Fingerprint, LayerMoments
from .models.batching import WINDOW, Batch, Text, batches, counted_from, windows
from .models.blocks import resolve_layers
from .models.capture import Capture, name_of
from .models.progress import Progress

METHODS = ("mean_difference", "lda")
NEUTRAL = "neutral"


def extract(
    model: Any,
    tok: Any,
    stories: Iterable[Any],
    *,
    neutral: Iterable[str] | None = None,
    layers: Any = "all",
    skip_tokens: int = 50,
    denoise: float = 0.5,
    method: str = "mean_difference",
    batch_tokens: int = 4096,
    progress: bool = True,
    token_weight: Callable[[Sequence[int]], Sequence[float]] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Bank:
    """Directions of labelled texts at each layer, by the recipe of the emotion-vectors paper.

    Each text's mean residual over its tokens from `skip_tokens` on (from the middle of a short text);
    the mean of a label's texts; less the mean over labels; less the projection on the principal
    components of neutral texts that together explain `denoise` of their variance (Sofroniew et al.,
    2026). One pass computes all layers and stops after the last wanted block; no head, padding never
    counts, and memory does not grow with the number of texts: they are read in windows of a few
    hundred, sorted by length within one.

    In a process group of torch.distributed each process takes its share of the texts, given the same
    texts in the same order, and all return the same bank.

    Args:
        model, tok: any decoder of transformers and its tokenizer.
        stories: `(label, text)` pairs, or `Story`s; read once, lazily.
        neutral: texts without what the labels are about. None: the ones that `stories` brings along
            (`es.emotions.corpus()` does), else none; `()`: none.
        layers: "all", numbers, or fractions of the depth.
        skip_tokens: tokens at the beginning that do not count.
        denoise: fraction of the neutral variance to take out, in [0, 1).
        method: "mean_difference", or "lda": mean differences whitened by the shrunk covariance within
            labels.
        batch_tokens: rows times columns of a batch at most.
        progress: show a bar where the output is a terminal.
        token_weight: token ids of a text → weight of each, not negative; those that are skipped do not
            count whatever their weight.
        checkpoint: a file that keeps what was counted, batch by batch: an interrupted extraction given
            the same file and texts goes on where it was. Removed at the end.

    Returns:
        a bank with means, scales (mean residual norms) and the mean and spread of each projection over
        the texts' tokens, which z-scores need.

    Raises:
        TypeError, ValueError: bad arguments, a text that is no string or has no token, fewer than two
            labels.
    """
    _check(skip_tokens, denoise, method, batch_tokens)
    if neutral is None:
        neutral = getattr(stories, NEUTRAL, ())
    run = _Pass(model, tok, layers, skip_tokens, method, batch_tokens, token_weight, checkpoint)
    with Progress(progress) as bar:
        run.count(stories, bar, "stories")
        run.count(((NEUTRAL, text) for text in neutral), bar, NEUTRAL)
    run.share()
    bank = run.finish(denoise)
    run.checkpoint.clear()
    return bank


def _check(skip_tokens: int, denoise: float, method: str, batch_tokens: int) -> None:
    if not isinstance(skip_tokens, int) or skip_tokens < 0:
        raise ValueError(f"skip_tokens must be an integer of at least 0, got {skip_tokens!r}")
    if not isinstance(batch_tokens, int) or batch_tokens < 1:
        raise ValueError(f"batch_tokens must be an integer of at least 1, got {batch_tokens!r}")
    if not 0 <= denoise < 1:
        raise ValueError(f"denoise must lie in [0, 1), got {denoise!r}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")


class _Pass:
    """Everything that is counted while texts stream by."""

    def __init__(
        self,
        model: Any,
        tok: Any,
        layers: Any,
        skip_tokens: int,
        method: str,
        batch_tokens: int,
        token_weight: Callable | None,
        checkpoint: str | os.PathLike[str] | None,
    ) -> None:
        self.tok, self.skip_tokens, self.method = tok, skip_tokens, method
        self.batch_tokens, self.token_weight = batch_tokens, token_weight
        self.capture = Capture(model, (0,))
        self.layers = resolve_layers(layers, self.capture.decoder.depth)
        self.capture.layers = self.layers
        self.model_name, self.revision = name_of(model)
        self.device = self.capture.device or torch.device("cpu")
        dim = self.capture.decoder.dim
        self.moments = {layer: LayerMoments(1, dim, method == "lda", self.device) for layer in self.layers}
        self.names: list[str] = []
        self.counts = {"stories": 0, NEUTRAL: 0}
        self.fingerprint = Fingerprint()
        self.longest = _longest(tok, model)
        self.rank, self.world = _group()
        identity = {
            "model": self.model_name,
            "layers": list(self.layers),
            "skip_tokens": skip_tokens,
            "method": method,
            "batch_tokens": batch_tokens,
            "rank": [self.rank, self.world],
        }
        if checkpoint is not None and self.world > 1:
            checkpoint = f"{os.fspath(checkpoint)}.{self.rank}"
        self.checkpoint = Checkpoint(checkpoint, identity)
        self.batches_done = 0
        self._to_skip = 0
        self._expected: dict[str, str] = {}
        self._resume()

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
            texts_here = self._tokens(
                [pairs[i][1] for i in mine], [groups[i] for i in mine], self.counts[kind]
            )
            self.counts[kind] += len(pairs)
            for batch in batches(texts_here, self.batch_tokens):
                if self._already_counted():
                    bar.advance(len(batch.texts) * self.world)
                    continue
                self._count_batch(batch, kind)
                self.batches_done += 1
                self._save()
                bar.advance(len(batch.texts) * self.world)

    def _group_of(self, label: str) -> int:
        if label not in self._index:
            self._index[label] = len(self.names)
            self.names.append(label)
        return self._index[label]

    @property
    def _index(self) -> dict[str, int]:
        return self.__dict__.setdefault("_index_of", {})

    def _tokens(self, texts: list[str], groups: list[int], before: int) -> list[Text]:
        if not texts:
            return []
        found = []
        for i, ids in enumerate(self.tok(texts, padding=False, truncation=False)["input_ids"]):
            if not len(ids):
                raise ValueError(f"text {before + i * self.world + self.rank} has no token: {texts[i]!r}")
            found.append(Text(tuple(ids[: self.longest]), groups[i]))
        return found

    def _count_batch(self, batch: Batch, kind: str) -> None:
        ids = batch.ids.to(self.device)
        group = torch.full(ids.shape, -1, dtype=torch.int32)
        weight = torch.zeros(ids.shape)
        for row, text in enumerate(batch.texts):
            first, end = counted_from(len(text.ids), self.skip_tokens), len(text.ids)
            group[row, first:end] = text.group
            weight[row, first:end] = self._weights(text, first)
        counted = group >= 0
        one = torch.where(counted, 0, -1).to(torch.int32)
        thin = one.clone().flatten()
        at = counted.flatten().nonzero().flatten()
        keep = torch.zeros_like(thin, dtype=torch.bool)
        keep[at[::SPREAD_STRIDE]] = True
        thin[~keep] = -1
        group, weight, one, thin, counted = (t.to(self.device) for t in (group, weight, one, thin, counted))

        def see(layer: int, hidden: Tensor) -> None:
            moments = self.moments[layer]
            if kind == NEUTRAL:
                moments.neutral.update(hidden, one)
                return
            moments.stories.update(hidden, group, weight)
            moments.spread.update(hidden, thin)
            norms = torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float32)
            moments.norm += torch.stack([(norms * counted).sum(dtype=torch.float64), counted.sum().double()])

        self.capture.run(ids, see)

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
        self._expected = {"texts": note["texts"]}
        dim = self.capture.decoder.dim
        for layer in self.layers:
            state = {name.split("/", 1)[1]: t for name, t in tensors.items() if name.startswith(f"{layer}/")}
            groups = state["stories.count"].shape[0]
            self.moments[layer] = LayerMoments(groups, dim, self.method == "lda", self.device)
            self.moments[layer].load(state)

    def _already_counted(self) -> bool:
        if not self._to_skip:
            return False
        self._to_skip -= 1
        if not self._to_skip and self.fingerprint.hexdigest() != self._expected["texts"]:
            raise ValueError(
                f"checkpoint {self.checkpoint.path} was made from other texts; delete it, or give another path"
            )
        return True

    def _save(self) -> None:
        if self.checkpoint.path is None:
            return
        tensors = {
            f"{layer}/{name}": t for layer, one in self.moments.items() for name, t in one.state().items()
        }
        note = {"batches": self.batches_done, "texts": self.fingerprint.hexdigest()}
        self.checkpoint.save(note, tensors)

    # ---- the end ------------------------------------------------------------------------------------

    def share(self) -> None:
        """Add up what the processes of a group have counted; afterwards all have the same."""
        if self._to_skip:
            raise ValueError(f"checkpoint {self.checkpoint.path} counted more texts than came now")
        if self.world == 1:
            return
        import torch.distributed as dist

        dim = self.capture.decoder.dim
        for layer in self.layers:
            mine = self.moments[layer]
            total: LayerMoments | None = None
            gathered: list[dict[str, Tensor]] = [{} for _ in range(self.world)]
            for name, tensor in mine.state().items():
                # bool is not a type that every backend sends
                sent = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor.contiguous()
                parts = [torch.empty_like(sent) for _ in range(self.world)]
                dist.all_gather(parts, sent)
                for rank, part in enumerate(parts):
                    gathered[rank][name] = part.to(tensor.dtype)
            for state in gathered:
                one = LayerMoments(len(self.names), dim, self.method == "lda", self.device)
                one.load(state)
                if total is None:
                    total = one
                else:
                    total.merge(one)
            assert total is not None
            self.moments[layer] = total

    def finish(self, denoise: float) -> Bank:
        """Directions and statistics of every layer."""
        found: dict[int, Tensor] = {}
        mean, scale, center, spread, removed = {}, {}, {}, {}, {}
        for layer, moments in self.moments.items():
            neutral = None
            if float(moments.neutral.count.sum()) > 1:
                neutral = moments.neutral.covariance("total").cpu()
            means = moments.stories.mean().cpu()
            if self.method == "lda":
                result = methods.lda(
                    means, moments.stories.covariance("within", correction=0.0).cpu(), neutral, denoise
                )
            else:
                result = methods.mean_difference(means, neutral, denoise)
            found[layer], mean[layer], removed[layer] = result.vectors, result.mean, result.components
            scale[layer] = float(moments.norm[0] / moments.norm[1])
            unit = result.vectors / torch.linalg.vector_norm(result.vectors, dim=1, keepdim=True)
            center[layer] = (moments.spread.total_mean().cpu() - result.mean) @ unit.T
            covariance = moments.spread.covariance("total").cpu()
            spread[layer] = ((unit @ covariance) * unit).sum(1).clamp(min=0).sqrt()
        return Bank(
            self.names,
            found,
            mean=mean,
            scale=scale,
            projection_mean=center,
            projection_std=spread,
            provenance={
                "model": self.model_name,
                "revision": self.revision,
                "method": self.method,
                "skip_tokens": self.skip_tokens,
                "denoise": denoise if self.counts[NEUTRAL] else 0.0,
                "components_removed": {str(layer): k for layer, k in removed.items()},
                "texts": dict(self.counts),
                "corpus": self.fingerprint.hexdigest(),
                "versions": {name: _version(name) for name in ("emosteer", "torch", "transformers")},
            },
        )


def _pair(item: Any, number: int) -> tuple[str, str]:
    try:
        label, text = item
    except (TypeError, ValueError):
        raise TypeError(f"story {number} must be a (label, text) pair, got {type(item).__name__}") from None
    if not isinstance(label, str) or not isinstance(text, str):
        raise TypeError(
            f"story {number} must be a (label, text) pair of strings, got {type(label).__name__}, {type(text).__name__}"
        )
    return label, text


def _longest(tok: Any, model: Any) -> int:
    """How many tokens a model takes at most."""
    config: Any = getattr(model, "config", None)
    text: Any = config.get_text_config() if hasattr(config, "get_text_config") else config
    known = (getattr(tok, "model_max_length", None), getattr(text, "max_position_embeddings", None))
    return min((n for n in known if isinstance(n, int) and n > 0), default=1 << 30)


def _group() -> tuple[int, int]:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
