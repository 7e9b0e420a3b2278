"""A chain of blocks is the model's depth and carries the stream that the output is made of, or is refused."""

import pytest
import torch
from torch import nn

from emosteer.models.blocks import check_layers, find_decoder


class Streams(nn.Module):
    """Blocks that hand on two streams at once, and a list of linear layers that acts on one of them."""

    def __init__(self, config=None):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(50, 16)
        self.mix = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.head = nn.Linear(16, 50)

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        one = two = self.embed(input_ids)
        for part in self.mix:
            one = part(one)
        return (self.head(one + two),)


def test_a_chain_that_is_not_all_the_output_is_made_of_is_refused():
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"does not come from the last of the 2 modules in mix alone"):
        find_decoder(Streams())


def test_a_chain_shorter_than_the_model_is_refused():
    from transformers import PretrainedConfig

    config = PretrainedConfig(vocab_size=50)
    config.num_hidden_layers = 4
    with pytest.raises(ValueError, match=r"has 4 blocks, but the longest chain .* is mix, 2 modules"):
        find_decoder(Streams(config))


def test_gemma_3n_is_refused():
    """Two streams between the blocks; its only chain is a list of linear layers."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Gemma3nTextConfig(
        vocab_size=64,
        vocab_size_per_layer_input=64,
        hidden_size=32,
        hidden_size_per_layer_input=8,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        altup_num_inputs=2,
        num_kv_shared_layers=0,
        laurel_rank=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        activation_sparsity_pattern=[0.0] * 4,
    )
    with pytest.raises(ValueError, match="streams"):
        find_decoder(transformers.Gemma3nForCausalLM(config).eval())


def test_layers_that_a_model_has_not():
    check_layers((0, 3), 4)
    with pytest.raises(ValueError, match=r"layers \[4\], the model has blocks 0 to 3.*layer_offset=-1"):
        check_layers((0, 4), 4)
