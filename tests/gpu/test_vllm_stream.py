"""vLLM's stream in two parts on a device: in a graph that is replayed under other programs, without a wait."""

import pytest
import torch

from emosteer.vllm.operator import on_gpu
from tests.vllm.test_operator import SLOTS, UNITS, WIDTH, rows, wanted

from .stub import captured, waits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_graph_follows_what_each_pass_is_about(device, dtype):
    pytest.importorskip("triton")
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(12, WIDTH, generator=generator).to(dtype)
    residual = torch.randn(12, WIDTH, generator=generator).to(dtype)
    directions = torch.nn.functional.normalize(torch.randn(4, WIDTH, generator=generator), dim=1)
    table, word = rows()
    place = torch.tensor([word, word + 1, 0], dtype=torch.int32)
    there = [one.to(device) for one in (residual, directions, table, place, UNITS)]
    source, token_row = start.to(device), torch.full((16,), -1, dtype=torch.int32, device=device)

    def run():
        hidden = source.clone()
        on_gpu(hidden, *there, token_row, SLOTS)
        return hidden

    replay, out = captured(run)
    for seed in range(4):
        choice = torch.Generator().manual_seed(seed)
        now = torch.randint(-1, 5, (16,), generator=choice, dtype=torch.int32)
        token_row.copy_(now)
        replay()
        want = wanted(start, residual, directions, now[:12], 0)
        found = out.cpu().double() + residual.double()
        scale = torch.finfo(dtype).eps * float(want.abs().max())
        assert float((found - want).abs().max()) <= 8 * scale
        assert torch.equal(out.cpu()[now[:12] < 0], start[now[:12] < 0])
    assert waits(run) == []
