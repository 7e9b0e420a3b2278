"""The text part of a vision-language model is found without an image, and steered with one."""

import pytest
import torch
import transformers

import emosteer as es
from emosteer.models.blocks import find_decoder

from .against_reference import assert_as_the_reference
from .conftest import random_bank
from .test_restore import leftovers
from .tiny import COMMON, IMAGE_TOKEN, VISION_LANGUAGE, tiny, tiny_vision_language

IDS = torch.tensor(
    [[5, IMAGE_TOKEN - 2, *[IMAGE_TOKEN] * 4, 7, 8], [9, IMAGE_TOKEN - 2, *[IMAGE_TOKEN] * 4, 10, 11]]
)
PROGRAMS = [es.add("calm", 0.3), es.hold("angry", 0.2)]


@pytest.fixture(scope="module", params=VISION_LANGUAGE)
def case(request):
    """`(model, bank, what it is called with)`: two rows, an image each."""
    model = tiny_vision_language(request.param)
    shown = (IDS == IMAGE_TOKEN).int()
    generator = torch.Generator().manual_seed(0)
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    if request.param in ("qwen2_vl", "qwen3_vl"):  # 4 × 4 patches an image, merged to 4 tokens
        inputs["pixel_values"] = torch.randn(32, 3 * 2 * 8 * 8, generator=generator)
        inputs |= {"image_grid_thw": torch.tensor([[1, 4, 4]] * 2), "mm_token_type_ids": shown}
    else:
        inputs["pixel_values"] = torch.randn(2, 3, 16, 16, generator=generator)
        inputs |= {"token_type_ids": shown} if request.param == "gemma3" else {}
    return model, random_bank(model), inputs


@pytest.mark.parametrize("fused", [True, False])
def test_steered_with_images(case, fused):
    model, bank, inputs = case
    assert "language_model" in find_decoder(model).name
    with torch.no_grad():
        expected = model(**inputs).logits
        steering = es.steer(model, bank, PROGRAMS, layers="all", fused=fused)
        assert_as_the_reference(
            model, bank, steering, lambda: model(**inputs, use_cache=False), inputs["attention_mask"]
        )
        assert torch.equal(model(**inputs).logits, expected)


def test_inside_the_norm_as_at_the_output(case):
    """Nobody looks on. What an image adds to the stream between blocks is added to the steered stream."""
    model, bank, inputs = case
    with torch.no_grad():
        with es.steer(model, bank, PROGRAMS, layers="all", fused=False):
            expected = model(**inputs).logits
        with es.steer(model, bank, PROGRAMS, layers="all") as steering:
            assert "steered inside" in steering.report()
            torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-4, atol=1e-4)


def test_blocks_that_only_an_image_runs_are_refused():
    """Mllama's cross-attention blocks are left out of a text without images: no one stream has its depth."""
    config = transformers.MllamaTextConfig(
        **{**COMMON, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        cross_attention_layers=[1],
    )
    with pytest.raises(ValueError, match="no chain of blocks was found in MllamaForCausalLM"):
        find_decoder(transformers.MllamaForCausalLM(config).eval())


class Replacing(torch.nn.Module):
    """Two blocks; the stream between them is another tensor where the text is long."""

    def __init__(self):
        super().__init__()
        config = transformers.LlamaConfig(**COMMON)
        self.config = config
        inner = tiny("llama").model
        self.embed, self.layers, self.norm = inner.embed_tokens, inner.layers, inner.norm
        self.rotary = inner.rotary_emb

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        x = self.embed(input_ids)
        position = self.rotary(x, torch.arange(x.shape[1])[None])
        for layer in self.layers:
            x = layer(x, position_embeddings=position)
            x = x + 1.0 if x.shape[1] > 8 else x
        return self.norm(x)


def test_a_stream_that_is_replaced_by_some_inputs_only():
    """Nothing in the arguments tells; the norm is given another tensor than the block returned, and says so."""
    model = Replacing().eval()
    steering = es.steer(model, random_bank(model), "calm", 0.3, layers="all")
    with steering, torch.no_grad():
        model(torch.arange(5, 12)[None])
        with pytest.raises(RuntimeError, match="block 0 returned was replaced .* pass fused=False"):
            model(torch.arange(5, 20)[None])
    with es.steer(model, random_bank(model), "calm", 0.3, layers="all", fused=False), torch.no_grad():
        model(torch.arange(5, 20)[None])


def test_generates_from_images(case):
    model, bank, inputs = case
    how = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False)
    with es.steer(model, bank, PROGRAMS, layers="all"):
        fused = model.generate(**inputs, **how)
    with es.steer(model, bank, PROGRAMS, layers="all", fused=False):
        assert torch.equal(model.generate(**inputs, **how), fused)
    assert not torch.equal(model.generate(**inputs, **how), fused)


@pytest.mark.parametrize("image_token", [47, 94, 45])
def test_the_probe_is_text(image_token):
    """A probe that held an image token would want an image."""
    model = tiny_vision_language("llava", image_token_id=image_token)
    assert find_decoder(model).depth == 3


def test_a_tokenizers_configuration_is_no_token():
    """As models of speech keep it beside the ids of their tokens."""
    model = tiny("llama")
    model.config.acoustic_tokenizer_config = {"frames": 2}
    assert find_decoder(model).depth == 3


@pytest.mark.parametrize("make", [lambda: tiny_vision_language("qwen2_vl"), lambda: tiny("recurrent_gemma")])
def test_attaching_leaves_a_models_own_state(make):
    """Position offsets and recurrent states belong to the text that the model is at, not to the probe."""
    model = make()
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7]]))
    before = leftovers(model)
    with es.steer(model, random_bank(model), "calm", 0.1, layers="all"):
        pass
    assert leftovers(model) == before
