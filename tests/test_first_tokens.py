"""First tokens of giant norm (attention sinks), texts of one token, and texts of none."""

import warnings

import pytest
import torch

import emosteer as es

STORIES = [
    ("joy", "the sun came up"),
    ("joy", "they danced until late"),
    ("fear", "steps"),
    ("fear", "a door"),
]


@pytest.fixture
def sinking(tiny_llama):
    """A model whose first token's residual is a hundred times as long as the others'."""
    model, tok = tiny_llama

    def lengthen(_block, _args, output):
        (output if isinstance(output, torch.Tensor) else output[0])[:, 0] *= 100

    model.model.layers[2].register_forward_hook(lengthen)
    return model, tok


def test_a_first_token_that_sways_the_scale_is_said(sinking):
    with pytest.warns(UserWarning, match=r"first token .* layer 3 is \d+ times .*skip_tokens=1"):
        es.extract(*sinking, STORIES, skip_tokens=0, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = es.extract(*sinking, STORIES, skip_tokens=1, layers=[3], progress=False)
        es.extract(*sinking, STORIES, layers=[2], skip_tokens=0, progress=False)  # below it there is none
    assert (
        found.scale[3] < es.extract(*sinking, STORIES, layers=[3], skip_tokens=0, progress=False).scale[3] / 3
    )


def test_a_text_of_one_token_counts_its_sink(sinking):
    with pytest.warns(UserWarning, match="texts of more than one token"):
        es.extract(*sinking, [*STORIES, ("fear", "!")], layers=[3], progress=False)


def test_an_empty_text_is_refused_though_a_tokenizer_gives_it_a_token(tiny_llama):
    from tokenizers.processors import TemplateProcessing

    model, tok = tiny_llama
    tok.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tok.bos_token_id)]
    )
    assert tok("").input_ids == [tok.bos_token_id]
    with pytest.raises(ValueError, match="text 4 has no token: ''"):
        es.extract(model, tok, [*STORIES, ("fear", "")], progress=False)
