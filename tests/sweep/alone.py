"""Each unit run alone, in the plainest way: what the runner's shortcuts are compared with."""

import torch

import emosteer as es
from emosteer import spelling
from emosteer.sweep import Work
from tests.steering.conftest import streams


def works(sweep):
    """Everything that a sweep has to do, and its runner."""
    from emosteer.models.blocks import find_decoder
    from emosteer.sweep.metrics.reading import ready_metrics

    plan, runner = sweep.plan(), sweep.runner()
    metrics = ready_metrics(sweep.metrics, sweep.bank, find_decoder(sweep.model).depth)
    return [Work(unit, metrics) for unit in plan], runner


def rows_by_key(rows):
    """`(unit id, metric name)` → row; fails where one comes twice."""
    found = {}
    for unit in rows:
        for row in unit:
            assert (row.unit.id, row.metric) not in found
            found[row.unit.id, row.metric] = row
    return found


def steering(sweep, unit):
    """`es.steer` for one unit."""
    return es.steer(
        sweep.model,
        sweep._bank,
        [unit.program],
        layers=unit.layers or sweep.bank.layers[:1],
        positions=spelling.positions(unit.positions) if unit.layers else "all",
    )


def outcome(sweep, unit, continuations):
    """Log-probability of each continuation, and the tokens of `model.generate`, steered for one unit.

    Prompt and continuation in one pass, no cache, no padding; of the text, what comes before its end.
    """
    prompt, found = list(unit.prompt.tokens), {}
    with steering(sweep, unit) as s, torch.no_grad():
        for continuation in continuations:
            ids = sweep.tok(continuation, add_special_tokens=False).input_ids
            whole = torch.tensor([prompt + ids])
            with s.batch([0], torch.ones(1, len(prompt))):
                mask = torch.ones_like(whole)
                logits = sweep.model(input_ids=whole, attention_mask=mask, use_cache=False).logits
            scores = logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
            found[continuation] = float(scores.gather(1, torch.tensor(ids)[:, None]).sum())
        ids = torch.tensor([prompt])
        out = sweep.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=sweep.generation.max_new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    tokens = out[0, ids.shape[1] :].tolist()
    end = sweep.model.generation_config.eos_token_id
    return found, tuple(tokens[: tokens.index(end)] if end in tokens else tokens)


def unsteered_scores(sweep, unit, text):
    """Log-probabilities of a text's tokens under the model without any steering, float64."""
    prompt = list(unit.prompt.tokens)
    with torch.no_grad():
        logits = sweep.model(input_ids=torch.tensor([prompt + list(text)]), use_cache=False).logits
    scores = logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    return scores.gather(1, torch.tensor(text)[:, None])[:, 0]


def mean_projection(sweep, unit, text, layer):
    """Mean projection of a text's tokens on the bank's directions, unsteered, as PyTorch's own hooks see it."""
    ids = torch.tensor([[*unit.prompt.tokens, *text]])
    with streams(sweep.model) as seen, torch.no_grad():
        sweep.model(input_ids=ids, use_cache=False)
    hidden = seen[0][layer][0, len(unit.prompt.tokens) :].double()
    return (hidden @ sweep.bank.directions[layer].double().T).mean(0) / sweep.bank.scale[layer]
