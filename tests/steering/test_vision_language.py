"""The text part of a vision-language model is found without an image, and steered with one."""

import pytest
import torch

import emosteer as es
from emosteer.models.blocks import find_decoder

from .against_reference import assert_as_the_reference
from .conftest import random_bank
from .test_restore import leftovers
from .tiny import IMAGE_TOKEN, VISION_LANGUAGE, tiny, tiny_vision_language

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
    if request.param == "qwen2_vl":  # 4 × 4 patches an image, merged to 4 tokens
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
