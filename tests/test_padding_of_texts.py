"""Models in which what follows a token changes it: a text's rows are those of the text alone, whatever the batch."""

import pytest
import torch

import emosteer as es
from emosteer.extraction import text_means
from emosteer.models.batching import Text, batches
from emosteer.models.capture import Capture

from .conftest import byte_tokenizer

TEXTS = [
    "a short one",
    "one that is a good deal longer than the others are",
    "and another one of some length",
    "a",
]


def encoder(kind):
    from transformers import BertConfig, BertModel, Gemma3TextConfig, Gemma3TextModel

    torch.manual_seed(0)
    size = dict(vocab_size=len(byte_tokenizer()), hidden_size=32, intermediate_size=64, initializer_range=0.3)
    if kind == "bert":
        return BertModel(BertConfig(num_hidden_layers=3, num_attention_heads=4, **size)).eval()
    config = Gemma3TextConfig(
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8, pad_token_id=0, **size
    )
    config.use_bidirectional_attention = True
    return Gemma3TextModel(config).eval()


@pytest.mark.parametrize("kind", ["bert", "gemma3"])
def test_a_text_in_a_batch_reads_as_it_does_alone(kind):
    model, tok = encoder(kind), byte_tokenizer()
    assert not Capture(model, (0,)).padded
    together = text_means(model, tok, TEXTS, layers="all", skip_tokens=0)
    for k, text in enumerate(TEXTS):
        alone = text_means(model, tok, [text], layers="all", skip_tokens=0)
        for layer, row in alone.items():
            torch.testing.assert_close(together[layer][k], row[0], rtol=1e-4, atol=1e-4)


def test_directions_do_not_depend_on_the_batches():
    model, tok = encoder("bert"), byte_tokenizer()
    stories = [(label, f"{text} {label}") for label in ("joy", "fear") for text in TEXTS]
    banks = [
        es.extract(model, tok, stories, skip_tokens=0, batch_tokens=n, progress=False) for n in (1, 4096)
    ]
    for layer in banks[0].layers:
        cosine = (banks[0].directions[layer] * banks[1].directions[layer]).sum(1)
        assert float(cosine.min()) > 0.9999


def test_a_causal_model_is_padded(tiny_llama):
    assert Capture(tiny_llama[0], (0,)).padded


def test_batches_of_one_length():
    texts = [Text(tuple(range(n)), 0) for n in (3, 5, 3, 4, 5, 5, 9)]
    found = batches(texts, 10, padded=False)
    assert sorted(len(t.ids) for b in found for t in b.texts) == [3, 3, 4, 5, 5, 5, 9]
    assert all(len({len(t.ids) for t in b.texts}) == 1 and b.ids.numel() <= 10 for b in found)
    assert len(found) == 5
