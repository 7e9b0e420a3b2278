"""A row of a mixed batch equals the same request alone: any padding, any lengths, any batch size."""

import pytest
import torch

import emosteer as es

from .conftest import CONCEPTS, padded, random_bank

PROGRAMS = [
    es.add("calm", 0.2),
    None,
    es.cap("angry", 0.0) + es.add("joyful", 0.1),
    es.ablate("proud"),
    es.rotate("weary", 15),
    es.hold("desperate", 0.1),
    es.floor("calm", 0.05),
]


def mixed(batch, seed=0):
    """`batch` prompts of 1 to 19 tokens, and a program for each."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 20, (batch,), generator=generator).tolist()
    prompts = [torch.randint(5, 250, (n,), generator=generator).tolist() for n in lengths]
    return prompts, [PROGRAMS[k % len(PROGRAMS)] for k in range(batch)]


def last_logits(model, ids, mask):
    """Logits after each row's last token, with the positions that generate would pass."""
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, position_ids=position_ids).logits
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    return logits[torch.arange(len(ids)), last]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch", [1, 2, 5, 32])
def test_logits(model, bank, batch, side, fused):
    prompts, programs = mixed(batch)
    with es.steer(model, bank, programs, layers="all", fused=fused):
        together = last_logits(model, *padded(prompts, side=side))
    for k in range(batch):
        with es.steer(model, bank, programs[k], layers="all", fused=fused):
            alone = last_logits(model, *padded([prompts[k]]))
        torch.testing.assert_close(together[k], alone[0], rtol=1e-4, atol=1e-4)


def greedy(model, ids, mask, **kwargs):
    return model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
        **kwargs,
    )[:, ids.shape[1] :]


@pytest.mark.parametrize("batch", [1, 3, 8, 32])
def test_greedy_text(model, bank, batch):
    prompts, programs = mixed(batch, seed=1)
    with es.steer(model, bank, programs, layers="all"):
        together = greedy(model, *padded(prompts))
    for k in range(batch):
        with es.steer(model, bank, programs[k], layers="all"):
            alone = greedy(model, *padded([prompts[k]]))
        assert together[k].tolist() == alone[0].tolist()


@pytest.mark.parametrize("positions", ["prompt", "generated", slice(1, 3), slice(-2, None)])
def test_greedy_text_at_positions(model, bank, positions):
    prompts, programs = mixed(8, seed=2)
    with es.steer(model, bank, programs, layers="all", positions=positions):
        together = greedy(model, *padded(prompts))
    for k in range(len(prompts)):
        with es.steer(model, bank, programs[k], layers="all", positions=positions):
            alone = greedy(model, *padded([prompts[k]]))
        assert together[k].tolist() == alone[0].tolist()


def test_padding_stays_bit_for_bit(model, bank):
    """What happens at padding is the unsteered model's business."""
    ids, mask = padded([[5, 6, 7], [8]])
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)
    seen = []

    def record(block, args, output):
        seen.append(output.clone() if isinstance(output, torch.Tensor) else output[0].clone())

    def run():
        seen.clear()
        handle = model.model.layers[0].register_forward_hook(record)
        with torch.no_grad():
            model(input_ids=ids, attention_mask=mask, position_ids=position_ids)
        handle.remove()
        return seen[0]

    clean = run()
    with es.steer(model, bank, "calm", 0.5, layers=[0], fused=False):
        steered = run()
    assert torch.equal(steered[1, :2], clean[1, :2])
    assert not torch.equal(steered[1, 2], clean[1, 2])


@pytest.mark.model
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_real_model(smollm2, side):
    """Greedy text of the real model, token for token, with a program each."""
    model, tokenizer = smollm2
    bank = random_bank(model, scale=30.0)
    texts = [
        "My day was",
        "The letter from the council said that the old bridge",
        "Please describe, in one sentence, what a lighthouse keeper does at night:",
        "1, 2, 3,",
    ]
    programs = [es.add("calm", 0.1), None, es.add("angry", 0.1) + es.cap("joyful", 0.0), es.ablate("proud")]
    prompts = [tokenizer(text).input_ids for text in texts]
    assert set(CONCEPTS) >= {name for p in programs if p for name in p.names}
    with es.steer(model, bank, programs):
        logits = last_logits(model, *padded(prompts, pad=tokenizer.pad_token_id, side=side))
        together = greedy(model, *padded(prompts, pad=tokenizer.pad_token_id))
    for k, program in enumerate(programs):
        with es.steer(model, bank, program):
            alone = last_logits(model, *padded([prompts[k]]))[0]
            text = greedy(model, *padded([prompts[k]]))[0]
        torch.testing.assert_close(logits[k], alone, rtol=2e-3, atol=2e-3)
        assert together[k].tolist() == text.tolist()


def test_rows_of_a_batch_said_by_the_caller(model, bank, prompts):
    """A loop of one's own: any rows of the table, in any order, and where the prompts end."""
    programs = [es.add("calm", 0.3), es.ablate("proud"), es.rotate("weary", 15)]
    ids, mask = padded(prompts)
    chosen = [2, -1, 0, 2]
    for positions in ("all", "generated"):
        with es.steer(model, bank, programs, layers="all", positions=positions) as steering:
            with steering.batch(chosen, prompt_mask=mask[:, :-1]):
                together = last_logits(model, ids, mask)
            with pytest.raises(ValueError, match="row 3; the table has rows 0 to 2"), steering.batch([3]):
                pass
            with steering.batch([0]), pytest.raises(ValueError, match="4 rows, 1 were said to come"):
                last_logits(model, ids, mask)
        for k, row in enumerate(chosen):
            program = None if row < 0 else programs[row]
            with es.steer(model, bank, program, layers="all", positions=positions) as steering:
                one, alone = padded([prompts[k]])
                with steering.batch(prompt_mask=alone[:, :-1]):
                    expected = last_logits(model, one, alone)
            torch.testing.assert_close(together[k], expected[0], rtol=1e-4, atol=1e-4)
