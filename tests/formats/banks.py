"""Banks to write, and what it takes for two to be the same."""

import torch

from emosteer.bank import Bank

# format -> suffix, options that change how rows are written
SUFFIX = {
    "emosteer": ".safetensors",
    "npz": ".npz",
    "gguf": ".gguf",
    "svec": ".svec",
    "easysteer": ".json",
    "steering_vectors": ".pt",
    "lm_eval": ".pt",
    "hotwire": ".pt",
    "steering_lite": ".safetensors",
    "saklas": ".safetensors",
}
WHOLE = ("emosteer", "npz")
ONE = tuple(name for name in SUFFIX if name not in (*WHOLE, "svec"))


def some(names=("calm",), layers=(1, 2, 5), dim=24, spread=3.0, seed=0, **more):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rows = {layer: torch.randn(len(names), dim) * spread**layer for layer in layers}
        return Bank(names, rows, **more)


def full(names=("calm",), layers=(1, 2, 5), dim=24):
    k = len(names)
    generator = torch.Generator().manual_seed(1)
    per = lambda *shape: {l: torch.randn(*shape, generator=generator) for l in layers}  # noqa: E731
    return some(
        names,
        layers,
        dim,
        mean=per(dim),
        scale={l: 10 / 3 + l for l in layers},
        projection_mean=per(k),
        projection_std={l: value.abs() for l, value in per(k).items()},
        provenance={"model_type": "llama", "method": "mean_difference", "texts": {"calm": 3}, "ratio": 1 / 3},
    )


def same(a, b, fields=("directions", "magnitude")):
    """To the bit."""
    assert (a.names, a.layers) == (b.names, b.layers)
    for field in fields:
        mine, other = getattr(a, field), getattr(b, field)
        assert mine.keys() == other.keys(), field
        for layer in mine:
            x, y = torch.as_tensor(mine[layer]), torch.as_tensor(other[layer])
            assert x.dtype == y.dtype
            assert torch.equal(x, y), (field, layer)
