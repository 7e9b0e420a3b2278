"""What each block of a steered model left behind, compared with the definition in fp64."""

import torch

from emosteer import ops
from emosteer.models.blocks import find_decoder
from emosteer.models.patching import first_tensor


def blocks_run(model, run):
    """What each block was called with and what it left, once the pass was over: `[(block, args, kwargs, stream)]`.

    Tensors are not copied, so what is written into them inside the next norm shows.
    """
    calls = []

    def record(block, args, kwargs, output):
        calls.append((block, args, kwargs, first_tensor(output)))

    hooks = [b.register_forward_hook(record, with_kwargs=True) for b in find_decoder(model).blocks]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def assert_as_the_reference(model, bank, steering, run, mask, tolerance=2e-5):
    """The stream after each block, as steered, against the reference on what that block gives unsteered.

    Args:
        run: one forward pass without a cache.
        mask: `[B, T]`, 1 where a token is; padding must come out as the block gives it.
        tolerance: largest distance of a token's row, as a fraction of its norm.
    """
    token = mask.bool()
    row = torch.where(token, torch.arange(len(mask))[:, None] % steering.table.rows, -1).to(torch.int32)
    with steering:
        calls = blocks_run(model, run)
    assert len(calls) == find_decoder(model).depth
    for layer, (block, args, kwargs, after) in enumerate(calls):
        with torch.no_grad(), ops.backend("reference"):
            before = first_tensor(block(*args, **kwargs))
            directions = bank.directions[layer].double()
            expected = ops.steer(before.double(), directions, steering.table, row, scale=bank.scale[layer])
        error = ((after.double() - expected).norm(dim=-1) / expected.norm(dim=-1))[token]
        assert error.max() < tolerance, f"block {layer}: {error}"
        torch.testing.assert_close(after[~token], before[~token], rtol=10 * tolerance, atol=10 * tolerance)
        moved = (after - before).norm(dim=-1)[token]
        assert moved.min() > 1e-2, f"block {layer} was not steered: {moved}"
