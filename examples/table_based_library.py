"""A hook-based steering library, and the same turned into a table-based one: `python examples/table_based_library.py`.

Before, a hook adds one vector to the whole batch, so requests that differ must run apart. After, the
same hooks read a table: each row of a batch has its own direction and strength, padding is left alone,
and changing a row is writing two numbers. Nothing is downloaded; the model is a small random one.
"""

from __future__ import annotations

import torch

from emosteer.ops import SteerTable, steer_


class HookSteering:
    """Before: one vector for all rows, padding included; another strength means other hooks."""

    def __init__(self, blocks, vectors):
        self.blocks, self.vectors = blocks, vectors  # vectors: layer -> [D]

    def __enter__(self):
        add = lambda vector: lambda module, args, output: output + vector  # noqa: E731
        self.handles = [self.blocks[l].register_forward_hook(add(v)) for l, v in self.vectors.items()]

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()


# --- the 40 lines --------------------------------------------------------------------------------


class TableSteering:
    """After: row `b` of a batch is steered by row `b` of the table."""

    def __init__(self, model, blocks, directions, scale, rows):
        self.model, self.blocks = model, blocks
        self.directions = directions  # layer -> float32 [K, D], rows of unit length
        self.scale = scale  # layer -> what a strength of 1 is, e.g. the mean residual norm
        self.table = SteerTable.empty(rows)

    def set(self, row, concept, strength, preserve_norm=0):
        """Row `row` gets `strength` units of direction `concept`; concept −1 leaves it as it is."""
        self.table.direction[row, 0] = concept
        self.table.strength[row, 0] = strength
        self.table.preserve_norm[row] = preserve_norm
        self.table.validate(len(next(iter(self.directions.values()))))

    def index(self, module, args, kwargs):
        """Which table row each token takes, −1 for padding: once a forward, for all layers."""
        ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
        rows = torch.arange(len(ids), dtype=torch.int32)[:, None].repeat(1, ids.shape[1])
        if mask is not None:  # with a cache the mask is longer than the new tokens
            rows[mask[:, -ids.shape[1] :] == 0] = -1
        self.token_row = rows

    def hook(self, layer):
        def steer(module, args, output):
            stream = output[0] if isinstance(output, tuple) else output
            steer_(stream, self.directions[layer], self.table, self.token_row, scale=self.scale[layer])

        return steer

    def __enter__(self):
        self.handles = [self.model.register_forward_pre_hook(self.index, with_kwargs=True)]
        self.handles += [self.blocks[l].register_forward_hook(self.hook(l)) for l in self.directions]
        return self

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()


# -------------------------------------------------------------------------------------------------


def main():
    """Both on the same requests; returns the largest difference of logits and the table version's own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    blocks = model.model.layers
    directions = {layer: torch.nn.functional.normalize(torch.randn(3, 64), dim=1) for layer in (1, 2)}
    scale = {1: 4.0, 2: 6.0}
    prompts = [torch.randint(3, 96, (n,)) for n in (9, 5, 7)]
    wanted = [(0, 0.5), (2, -1.0), (-1, 0.0)]  # a direction and a strength for each; none for the last

    apart = []
    for prompt, (concept, strength) in zip(prompts, wanted):
        vectors = {l: strength * scale[l] * directions[l][concept] for l in directions}
        with HookSteering(blocks, vectors):
            apart.append(model(input_ids=prompt[None]).logits[0, -1])

    width = max(map(len, prompts))
    ids = torch.stack([torch.nn.functional.pad(prompt, (width - len(prompt), 0)) for prompt in prompts])
    mask = torch.stack([torch.arange(width) >= width - len(prompt) for prompt in prompts]).long()
    steering = TableSteering(model, blocks, directions, scale, rows=len(prompts))
    for row, (concept, strength) in enumerate(wanted):
        steering.set(row, concept, strength)
    inputs = dict(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    plain = model(**inputs).logits
    with steering:
        together = model(**inputs).logits
    difference = max(float((a - b).abs().max()) for a, b in zip(apart, together[:, -1]))
    restored = torch.equal(plain, model(**inputs).logits)
    untouched = torch.equal(plain[2], together[2])
    print(f"3 requests in one batch against 3 apart: logits differ by {difference:.1e}")
    print(f"the row without a direction is untouched: {untouched}; the model is restored: {restored}")
    return difference, untouched, restored, float((together - plain)[:2].abs().max())


if __name__ == "__main__":
    main()
