"""Rows of the table and of tokens, against plain loops: whatever comes, goes, is cut up and is drafted."""

import random

import numpy as np
import pytest
import torch

import emosteer as es
from emosteer.vllm import params
from emosteer.vllm.asking import Asked
from emosteer.vllm.deployment import Deployment
from emosteer.vllm.rows import Rows
from emosteer.vllm.settings import Settings
from emosteer.vllm.tokens import TRIAL, TokenRows

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    directions = {layer: torch.randn(3, 8, generator=generator) for layer in range(40)}
    bank = es.Bank(["calm", "angry", "joyful"], directions, scale=dict.fromkeys(directions, 2.0))
    path = tmp_path_factory.mktemp("bank") / "b.safetensors"
    bank.save(path)
    return Deployment(Settings.read({"banks": {"b": str(path)}}), 40, 8)


def placed(deployment, text, **where):
    return deployment.placed(Asked.of(params(text, **where)))


def test_rows_hold_what_the_running_pass_needs(deployment):
    """A thousand passes of random requests: each row says its program, no pass overwrites a row that it uses."""
    generator = random.Random(0)
    rows = Rows(deployment, 12, CPU)
    programs = [placed(deployment, f"calm +{k}") for k in range(1, 40)]
    for _ in range(1000):
        batch = [generator.choice([None, *programs]) for _ in range(generator.randint(1, 12))]
        found = rows.of(batch)
        for one, row in zip(batch, found):
            if one is None:
                assert row == -1
            else:
                assert rows.table[row].numpy().tobytes() == one.row
        distinct = {one.row for one in batch if one is not None}
        assert len({row for row in found if row >= 0}) == len(distinct)
    assert len(rows) == 12
    with pytest.raises(RuntimeError, match="more programs than the steering table has rows, 12"):
        rows.of(programs[:13])


def test_a_program_that_runs_keeps_its_row(deployment):
    rows = Rows(deployment, 4, CPU)
    kept = placed(deployment, "angry +1")
    (first,) = rows.of([kept])
    for k in range(1, 50):
        found = rows.of([kept, placed(deployment, f"calm +{k}")])
        assert found[0] == first


def acted_on(kind, prompt):
    """The places below 100 that a kind of positions names, in a text whose prompt has so many tokens."""
    if isinstance(kind, list):
        return [place for place, on in enumerate(kind) if on]
    if kind in ("all", "prompt", "generated"):
        return range(prompt if kind == "generated" else 0, prompt if kind == "prompt" else 100)
    ends = [edge + prompt if edge is not None and edge < 0 else edge for edge in (kind.start, kind.stop)]
    return range(max(ends[0] or 0, 0), 100 if ends[1] is None else ends[1], kind.step or 1)


def test_tokens_take_the_row_of_their_request_where_it_acts(deployment):
    """Random batches: chunks of prompts, single tokens, several drafts; every kind of positions."""
    generator = random.Random(1)
    kinds = [
        "all",
        "prompt",
        "generated",
        slice(-1, None),
        slice(2, -1),
        slice(None, None, 3),
        slice(-4, None, 2),
        [True],
        [False] * 3,
        [False, True, True, False, True],
        [k % 7 > 2 for k in range(60)],
    ]
    rows = Rows(deployment, 16, CPU)
    tokens = TokenRows(rows, 300, 8, CPU)
    acted = 0
    for _ in range(300):
        batch, prompts, spans, places = [], [], [0], []
        for _ in range(generator.randint(1, 8)):
            prompt, start, length = (
                generator.randint(1, 30),
                generator.randint(0, 40),
                generator.randint(1, 30),
            )
            kind = generator.choice(kinds)
            one = generator.choice(
                [None, placed(deployment, f"calm +{generator.randint(1, 9)}", positions=kind)]
            )
            batch.append((one, kind))
            prompts.append(prompt)
            spans.append(spans[-1] + length)
            places += range(start, start + length)
        padded = torch.tensor(places + [7] * 10)
        tokens.fill(
            [one for one, _ in batch], prompts, torch.tensor(spans, dtype=torch.int32), padded, spans[-1]
        )
        known = rows.of([one for one, _ in batch])
        wanted = np.full(300, -1)
        for (one, kind), row, prompt, begin, end in zip(batch, known, prompts, spans, spans[1:]):
            if one is None:
                continue
            chosen = set(acted_on(kind, prompt))
            for n in range(begin, end):
                if places[n] in chosen:
                    wanted[n] = row
        assert tokens.value.tolist() == wanted.tolist()
        acted += int((wanted >= 0).sum())
    assert acted > 3500
    tokens.clear()
    assert bool((tokens.value == -1).all())


def test_salts_tell_apart_what_keys_and_values_depend_on(deployment):
    """Program, layers, positions, relative strengths; the prompt's length only where positions count from its end."""
    one = placed(deployment, "calm +1")
    assert placed(deployment, "calm +1").salt(5) == one.salt(9)
    different = [
        placed(deployment, "calm +2"),
        placed(deployment, "angry +1"),
        placed(deployment, "calm +1", layers="all"),
        placed(deployment, "calm +1", positions="0:"),
        placed(deployment, "calm +1", positions="generated"),
        placed(deployment, "calm +1", positions=[True]),
        placed(deployment, "calm +1", positions=[False, True]),
        placed(deployment, "calm +1", relative=True),
        placed(deployment, "calm +1; norm: free"),
    ]
    salts = {each.salt(5) for each in [one, *different]}
    assert len(salts) == len(different)  # "0:" is "all"
    late = placed(deployment, "calm +1", positions="generated")
    assert late.salt(5) != late.salt(6)
    assert placed(deployment, "calm +1", positions=[True]).salt(5) == placed(
        deployment, "calm +1", positions=[True, False]
    ).salt(6)
    assert placed(deployment, "none") is None


def test_params_are_plain_values_that_come_back():
    import json

    program = es.add("calm", 0.05) + es.cap("desperate", 0.0)
    given = params(program, bank="emotions", layers=[1, 0.5], positions=slice(-1, None), relative=True)
    assert json.loads(json.dumps(given)) == given
    asked = Asked.of({"other": 1, **given})
    assert asked == Asked(program, "emotions", (1, 0.5), "-1:", True)
    assert asked.extra_args() == given
    assert params("calm +0.05; desperate <= 0") == params(program)
    assert Asked.of({"other": 1}) is None
    with pytest.raises(TypeError, match="must be a program or its text, got int"):
        params(3)
    masked = params("calm +1", positions=[True, False])
    assert masked["emosteer_positions"] == "mask:10"
    assert Asked.of(masked).extra_args() == masked
    with pytest.raises(TypeError, match="of one text"):
        params("calm +1", positions=[[True, False]])
    with pytest.raises(
        ValueError, match="emosteer_positions of 200,005 characters is too long: at most 100,000"
    ):
        params("calm +1", positions=[True] * 200_000)


@pytest.mark.parametrize("requests", [1, 2])
def test_an_engine_of_few_requests_can_be_proved(deployment, requests):
    """The trial pass is of more requests than may run together, one row among them."""
    rows = Rows(deployment, 2 * requests, CPU)
    tokens = TokenRows(rows, 64, requests, CPU)
    one = placed(deployment, "calm +1")
    starts, places = torch.arange(TRIAL + 1, dtype=torch.int32), torch.zeros(TRIAL, dtype=torch.int64)
    tokens.fill([one, None] * (TRIAL // 2), [0] * TRIAL, starts, places, TRIAL)
    assert tokens.value[:TRIAL].tolist() == [rows.of([one])[0], -1] * (TRIAL // 2)
