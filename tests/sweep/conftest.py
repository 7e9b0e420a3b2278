"""A tiny model with a bank of random directions, and sweeps over them."""

import warnings

import pytest

import emosteer as es
from tests.steering.conftest import random_bank

PROMPTS = ("hello there, ", "I am so", "what now, my old friend? Tell me of ")


@pytest.fixture
def model(tiny_llama):
    return tiny_llama[0]


@pytest.fixture
def tok(tiny_llama):
    return tiny_llama[1]


@pytest.fixture
def bank(model):
    return random_bank(model)


@pytest.fixture
def sweep(model, tok, bank):
    """Makes a sweep of the tiny model; keywords add to or replace the usual ones."""

    def make(**changed):
        usual = dict(
            bank=bank,
            tok=tok,
            prompts=PROMPTS,
            programs=["calm", "angry"],
            strengths=(0.4,),
            layers=[[1, 2]],
            metrics=[es.metrics.choices(["A", "B"])],
            generation={"max_new_tokens": 6},
        )
        return es.Sweep(changed.pop("model", model), **{**usual, **changed})

    return make


@pytest.fixture(autouse=True)
def _no_silent_warnings():
    """What a sweep sets aside is a warning; a test that expects none fails by it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*part-.*")
        yield
