"""One text whose residuals are not finite: it is named, or left out, and touches no other."""

import pytest
import torch

import emosteer as es

STORIES = [
    ("joy", "the sun came up over the hill"),
    ("joy", "they danced until the lamps went out"),
    ("fear", "steps in the hall, and the door moved"),
    ("fear", "he counted to ten and looked again %"),
]
BAD = STORIES[3][1]


@pytest.fixture
def overflowing(tiny_llama):
    """A model whose embedding of "%" is infinite: the text's last token, in a causal model no other."""
    model, tok = tiny_llama
    with torch.no_grad():
        model.get_input_embeddings().weight[tok("%").input_ids[-1]] = torch.inf
    return model, tok


def test_the_text_its_label_and_layer_are_named(overflowing):
    with pytest.raises(ValueError, match=r'text 3 \(fear\) .*layer 1.*not finite; not_finite="skip"'):
        es.extract(*overflowing, STORIES, layers=[1, 2], progress=False)
    with pytest.raises(ValueError, match=r"text 1 \(neutral\) .*layer 1"):
        es.extract(*overflowing, STORIES[:3], neutral=["fine", BAD], layers=[1], progress=False)


def test_it_can_be_left_out(overflowing):
    found = es.extract(*overflowing, STORIES, layers=[1, 2], progress=False, not_finite="skip")
    wanted = es.extract(*overflowing, STORIES[:3], layers=[1, 2], progress=False)
    for layer in (1, 2):
        assert torch.equal(found.directions[layer], wanted.directions[layer])
    assert found.provenance["left_out"] == {"stories": [3], "neutral": []}
    with pytest.raises(ValueError, match="every text of fear was left out"):
        es.extract(*overflowing, [*STORIES[:2], STORIES[3]], layers=[1], progress=False, not_finite="skip")
    with pytest.raises(ValueError, match="not_finite must be one of raise, skip"):
        es.extract(*overflowing, STORIES, not_finite="ignore")


def test_text_means_and_pairs_name_it(overflowing):
    with pytest.raises(ValueError, match="text 1 has a residual at layer 0"):
        es.extraction.text_means(*overflowing, ["fine", BAD])
    pairs = [("warm and kind", "cold and stern"), ("yes", BAD), ("light", "dark now")]
    with pytest.raises(ValueError, match="pair 1 has a residual at layer 2"):
        es.extract_pairs(*overflowing, pairs, "x", layers=[2], progress=False)
    found = es.extract_pairs(*overflowing, pairs, "x", layers=[2], progress=False, not_finite="skip")
    wanted = es.extract_pairs(*overflowing, [pairs[0], pairs[2]], "x", layers=[2], progress=False)
    assert torch.equal(found.directions[2], wanted.directions[2])
    assert found.provenance["texts"] == {"pairs": 2, "left out": 1}


def test_a_token_that_is_not_read_may_be_infinite(tiny_llama):
    """A first token of giant norm overflows half precision in some models; the last one is read."""
    model, tok = tiny_llama

    def first_is_infinite(_block, _args, output):
        hidden = (output if isinstance(output, torch.Tensor) else output[0]).clone()
        hidden[:, 0] = torch.inf
        return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

    pairs = [("warm and kind", "cold and stern"), ("yes indeed", "not at all"), ("light", "dark now")]
    wanted = es.extract_pairs(model, tok, pairs, "x", layers=[3], progress=False)
    stories = es.extract(model, tok, STORIES, layers=[3], skip_tokens=1, progress=False)
    hook = model.model.layers[3].register_forward_hook(first_is_infinite)
    try:
        found = es.extract_pairs(model, tok, pairs, "x", layers=[3], progress=False)
        again = es.extract(model, tok, STORIES, layers=[3], skip_tokens=1, progress=False)
    finally:
        hook.remove()
    torch.testing.assert_close(found.directions[3], wanted.directions[3])
    torch.testing.assert_close(again.directions[3], stories.directions[3])
