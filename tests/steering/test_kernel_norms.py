"""A model's norms on the kernel, as extraction runs them: what they are given may be nothing, or lie elsewhere."""

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from emosteer import ops
from emosteer.models.kernel_norms import run_norms_on_kernel
from emosteer.models.patching import Patches
from tests.ops import host


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_rows_of_nothing(backend):
    """An expert that no token is sent to norms none, and a grid of no blocks is no launch."""
    model, patches = nn.ModuleList([LlamaRMSNorm(8)]), Patches()
    x = torch.randn(3, 8)
    with torch.no_grad(), host.installed(), ops.backend(backend):
        want = model[0](x)
        run_norms_on_kernel(model, patches)
        assert patches.active
        assert "forward" in vars(model[0])
        torch.testing.assert_close(model[0](x), want)
        assert model[0](x[:0]).shape == (0, 8)
    patches.undo()
    assert "forward" not in vars(model[0])
