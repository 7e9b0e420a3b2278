"""The formulas of the operations, row by row in numpy float64: shares no line with emosteer's."""

import numpy as np
import torch


def steered(x, directions, table, token_row=None, scale=1.0):
    """float64 `[N, D]`."""
    rows = x.double().reshape(-1, x.shape[-1]).numpy()
    v_all = directions.double().numpy()
    columns = [c.double().numpy() for c in table.columns()]
    count, programs = len(rows), table.rows
    chosen = np.arange(count) // (count // programs) if token_row is None else token_row.reshape(-1).numpy()
    return np.stack([_row(row, v_all, columns, r, scale) for row, r in zip(rows, chosen)])


def _row(x, v_all, columns, r, scale):
    if r < 0:
        return x
    direction, strength, low, high, angle, preserve, relative = (c[r] for c in columns)
    used = [s for s in range(len(direction)) if direction[s] >= 0]
    norm = np.linalg.norm(x)
    unit = scale * (norm if relative else 1.0)
    y = x.copy()
    for s in used:
        v = v_all[int(direction[s])]
        p = x @ v
        bounded = min(max(p, low[s] * unit if np.isfinite(low[s]) else low[s]), high[s] * unit)
        y = y + (strength[s] * unit + bounded - p) * v + (_turned(x, v, p, norm, angle[s]) - x)
    if np.array_equal(y, x):
        return x
    if preserve == 1 and np.linalg.norm(y) > 0:
        return y * norm / np.linalg.norm(y)
    if preserve == 2 and used:
        basis = _basis(v_all[[int(direction[s]) for s in used]])
        along = basis.T @ (basis @ y)
        across, length = y - along, np.linalg.norm(along)
        if length >= norm:
            return along * norm / length
        if np.linalg.norm(across) > 0:
            return along + across * np.sqrt(norm**2 - length**2) / np.linalg.norm(across)
    return y


def _basis(vectors):
    _, singular, basis = np.linalg.svd(vectors, full_matrices=False)
    return basis[singular > 1e-6 * singular[0]]


def _turned(x, v, p, norm, angle):
    if angle == 0 or norm == 0:
        return x
    length = np.linalg.norm(v)  # 1 up to float32 rounding, which tells where x is nearly parallel
    v, p = v / length, p / length
    across = x - p * v
    if np.linalg.norm(across) <= 1e-6 * norm:
        return x
    across /= np.linalg.norm(across)
    now = np.arccos(np.clip(p / norm, -1, 1))
    then = np.clip(now - angle, 0, np.pi)
    return norm * (np.cos(then) * v + np.sin(then) * across)


def normed(stream, weight, eps=1e-6, weight_offset=0.0):
    """float64 `[N, D]`."""
    x = stream.double().reshape(-1, stream.shape[-1]).numpy()
    return x / np.sqrt((x**2).mean(1, keepdims=True) + eps) * (weight.double().numpy() + weight_offset)


def assert_rounded(got, want, size, slack=3e-6):
    """`got` is `want` rounded once to its dtype, up to float32 arithmetic on rows of length `size` `[N]`."""
    info = torch.finfo(got.dtype)
    want = torch.from_numpy(np.asarray(want)).reshape(got.shape)
    size = torch.as_tensor(size, dtype=torch.float64).reshape(*got.shape[:-1], 1)
    allowed = want.abs() * info.eps * 0.505 + slack * size + info.smallest_normal * info.eps
    error = (got.double() - want).abs()
    assert (error <= allowed).all(), f"worst excess {(error - allowed).max()}, error {error.max()}"
