"""What one pass over texts accumulates at each layer: means by label, spread over tokens, norms."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emosteer.ops import Moments

# Every how manieth token counts for the covariance of single tokens, which wants no more than that.
SPREAD_STRIDE = 4


class LayerMoments:
    """Moments of one layer.

    Attributes:
        stories: by label; each text counts 1, spread over its tokens.
        neutral: the tokens of neutral texts, with their covariance.
        spread: every `SPREAD_STRIDE`th token of the labelled texts, with its covariance.
        norm: float64 `[2]`: the sum of the residual norms of labelled texts' tokens, and their number.
    """

    def __init__(self, groups: int, dim: int, within: bool, device: torch.device) -> None:
        self.stories = Moments(groups, dim, scatter=within, device=device)
        self.neutral = Moments(1, dim, scatter=True, device=device)
        self.spread = Moments(1, dim, scatter=True, device=device)
        self.norm = torch.zeros(2, dtype=torch.float64, device=device)

    def grow(self, groups: int) -> None:
        """Make room for more labels."""
        old = self.stories
        if groups <= old.n_groups:
            return
        grown = Moments(groups, old.dim, scatter=old.scatter is not None, device=old.device)
        state = old.state_dict()
        missing = groups - old.n_groups
        state["count"] = torch.cat([state["count"], state["count"].new_zeros(missing)])
        state["sum"] = torch.cat([state["sum"], state["sum"].new_zeros(missing, old.dim)])
        grown.load_state_dict(state)
        self.stories = grown

    def merge(self, other: LayerMoments) -> None:
        """Add what another process has counted."""
        self.stories.merge(other.stories)
        self.neutral.merge(other.neutral)
        self.spread.merge(other.spread)
        self.norm += other.norm

    def regrouped(self, old: Tensor, new: Tensor, groups: int) -> LayerMoments:
        """Labels `old[i]` counted as `new[i]`; what is not by label is shared with this one."""
        stories = Moments(groups, self.stories.dim, self.stories.scatter is not None, self.stories.device)
        old, new = old.to(self.stories.device), new.to(self.stories.device)
        state = self.stories.state_dict()
        state["count"] = stories.count.index_add(0, new, state["count"][old])
        state["sum"] = stories.sum.index_add(0, new, state["sum"][old])
        stories.load_state_dict(state)
        one = copy(self)
        one.stories = stories
        return one

    def state(self) -> dict[str, Tensor]:
        """The tensors by name."""
        found = {"norm": self.norm}
        for part in ("stories", "neutral", "spread"):
            found |= {f"{part}.{name}": t for name, t in getattr(self, part).state_dict().items()}
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a `state`."""
        self.norm.copy_(state["norm"])
        for part in ("stories", "neutral", "spread"):
            moments: Moments = getattr(self, part)
            moments.load_state_dict(
                {name.split(".", 1)[1]: t for name, t in state.items() if name.startswith(f"{part}.")}
            )


class Checkpoint:
    """The state of a pass in one safetensors file, replaced whole after each batch.

    Args:
        path: the file; None keeps nothing.
        identity: what the pass is about; a file about something else is refused.
    """

    def __init__(self, path: str | os.PathLike[str] | None, identity: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.identity = json.loads(json.dumps(identity))

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """`(progress, tensors)` of an interrupted pass; None if there is none.

        Raises:
            ValueError: the file is of another pass, or cannot be read.
        """
        if self.path is None or not self.path.exists():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                note = json.loads((file.metadata() or {})["emosteer"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise ValueError(
                f"checkpoint {self.path} cannot be read: {error}; delete it to start anew"
            ) from None
        if note.get("identity") != self.identity:
            differs = [k for k in self.identity if note.get("identity", {}).get(k) != self.identity[k]]
            raise ValueError(
                f"checkpoint {self.path} is of another extraction ({', '.join(differs) or 'format'} differ); "
                f"delete it, or give another path"
            )
        return note["progress"], tensors

    def save(self, progress: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Replace the file; a reader sees the old one or the new one."""
        if self.path is None:
            return
        from safetensors.torch import save

        note = json.dumps({"identity": self.identity, "progress": dict(progress)})
        content = save({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, {"emosteer": note})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except BaseException:
            os.unlink(temporary)
            raise

    def clear(self) -> None:
        """Remove the file: the pass is complete."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


class Fingerprint:
    """A hash of the texts seen so far, in order."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, kind: str, texts: Sequence[tuple[str, Any]]) -> None:
        """Add `(label, text)` pairs."""
        self._hash.update(json.dumps([kind, *texts]).encode())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
