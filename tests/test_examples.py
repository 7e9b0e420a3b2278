"""The examples run and show what they say."""

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_a_library_on_hooks_turned_into_one_on_a_table(capsys):
    made = runpy.run_path(str(EXAMPLES / "table_based_library.py"))
    difference, untouched, restored, moved = made["main"]()
    assert moved > 1
    assert difference < 1e-5 * moved
    assert untouched
    assert restored
    assert "3 requests in one batch" in capsys.readouterr().out


def test_it_generates(tiny_llama):
    """With a cache, padding on the left, and a row changed between two calls."""
    import torch

    made = runpy.run_path(str(EXAMPLES / "table_based_library.py"))
    model, _ = tiny_llama
    directions = {1: torch.nn.functional.normalize(torch.randn(2, 32), dim=1)}
    steering = made["TableSteering"](model, model.model.layers, directions, {1: 5.0}, rows=2)
    ids = torch.randint(3, 200, (2, 6))
    mask = torch.ones_like(ids)
    ids[1, :3], mask[1, :3] = model.config.pad_token_id, 0

    def generate(ids, mask):
        return model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, output_logits=True,
                              return_dict_in_generate=True)  # fmt: skip

    plain = generate(ids, mask)
    with steering:
        assert torch.equal(generate(ids, mask).sequences, plain.sequences)  # idle
        steering.set(0, 0, 3.0)
        steering.set(1, 1, -3.0, preserve_norm=1)
        both = generate(ids, mask)
    alone = made["TableSteering"](model, model.model.layers, directions, {1: 5.0}, rows=1)
    alone.set(0, 1, -3.0, preserve_norm=1)
    with alone:
        one = generate(ids[1:, 3:], mask[1:, 3:])
    for ours, other in zip(both.logits, one.logits):
        assert torch.allclose(ours[1], other[0], atol=1e-3)
    assert not torch.allclose(both.logits[0], plain.logits[0], atol=1e-2)
