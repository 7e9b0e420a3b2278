"""Programs, layers and positions as text: read as written, and back to the bit."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import emosteer as es
from emosteer import spelling
from emosteer.programs import Program, Slot

numbers = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12).filter(str.strip)


@st.composite
def slots(draw):
    low, high = sorted((draw(numbers), draw(numbers)))
    low, high = draw(
        st.sampled_from([(-math.inf, math.inf), (low, high), (-math.inf, high), (low, math.inf), (low, low)])
    )
    rotate = draw(st.one_of(st.just(0.0), st.floats(-math.pi, math.pi)))
    return Slot(draw(names), draw(st.one_of(st.just(0.0), numbers)), low, high, rotate)


@given(st.lists(slots(), max_size=4), st.sampled_from([None, True, False]))
def test_what_is_spelled_is_read_back(parts, norm):
    wanted = Program(tuple(parts), norm if parts else None)
    assert spelling.program(spelling.spelled(wanted)) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("calm +0.05; desperate <= 0", es.add("calm", 0.05) + es.cap("desperate", 0)),
        (" calm - 1e-2 ;", es.add("calm", -0.01)),
        ("self-conscious +.5", es.add("self-conscious", 0.5)),
        ("at ease >= 0.1", es.floor("at ease", 0.1)),
        ("calm=0", None),
        ("calm = 0", es.ablate("calm")),
        ("calm = 0.25; norm: free", es.hold("calm", 0.25, preserve_norm=False)),
        ("calm turned 30°", es.rotate("calm", 30)),
        ("calm turned -30 deg", es.rotate("calm", -30)),
        ('"a; b" +1', es.add("a; b", 1)),
        ("none", Program()),
        ('"none" +1', es.add("none", 1)),
        ("calm +0.05 <= 0.3", Program((Slot("calm", 0.05, high=0.3),))),
    ],
)
def test_forms(text, wanted):
    if wanted is None:
        with pytest.raises(ValueError, match="not understood"):
            spelling.program(text)
    else:
        assert spelling.program(text) == wanted


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "names no concept"),
        ("calm", "does not say what to do with 'calm'"),
        ("calm 0.5", "does not say what to do"),
        ("calm +nan", "not understood|does not say"),
        ("calm +1e999", "must be a finite number"),
        ("calm +1 +2", "says twice"),
        ("calm >= 1 <= 0", "cannot be both"),
        ("calm turned 200", "angle"),
        ("calm +1; norm: loud", "norm: kept"),
        ("calm +1; norm: kept; norm: free", "once"),
        ('"calm +1', "not understood|does not say"),
        ("+1", "not understood"),
        ("x" * 20_000, "too long"),
    ],
)
def test_what_is_no_program(text, reason):
    with pytest.raises(ValueError, match=reason):
        spelling.program(text)


def test_programs_for_a_harness():
    assert spelling.program_of(None) == Program()
    assert spelling.program_of(es.add("calm", 1)) == es.add("calm", 1)
    assert spelling.program_of("calm +1") == es.add("calm", 1)
    assert spelling.program_of('"hold on" +1') == es.add("hold on", 1)
    with pytest.raises(TypeError, match="must be a text"):
        spelling.program_of(0.5)


@pytest.mark.parametrize(
    ("verbs", "text"),
    [
        ("add calm 0.1", "calm +0.1"),
        ("add at ease -0.1 + ablate angry", "at ease -0.1; angry = 0"),
        ("cap angry 0 + floor calm 1e-2", "angry <= 0; calm >= 0.01"),
        ("hold calm 0.5 + rotate sad -30", "calm = 0.5; sad turned -30°"),
    ],
)
def test_verbs_are_refused_with_what_to_write(verbs, text):
    with pytest.raises(ValueError, match=re.escape(f'write "{text}"')):
        spelling.program_of(verbs)
    assert spelling.program(text)


def test_what_is_no_text():
    with pytest.raises(TypeError, match="must be a text"):
        spelling.program(["calm", 0.1])
    for bad in ([1, 2], [[True, False]], [True][:0], 3):
        with pytest.raises(TypeError, match="must here be bool and of one text"):
            spelling.spelled_positions(bad)


@pytest.mark.parametrize(
    "spec", ["all", "prompt", "generated", slice(-1, None), slice(2, 40, 3), slice(None, -2)]
)
def test_positions(spec):
    assert spelling.positions(spelling.spelled_positions(spec)) == spec


def test_masks():
    mask = torch.tensor([False, True, True, False])
    assert spelling.spelled_positions(mask) == spelling.spelled_positions(mask.tolist()) == "mask:0110"
    assert torch.equal(spelling.positions("mask:0110"), mask)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "some",
        "1",
        "a:b",
        "1:2:3:4",
        None,
        3,
        "mask:",
        "mask:012",
        "mask:01:1",
        "mask: 1",
        "mask:+1",
        "mask",
    ],
)
def test_no_positions(text):
    with pytest.raises(ValueError, match="positions must be"):
        spelling.positions(text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("all", "all"),
        ("14", 14),
        ("3-5", [3, 4, 5]),
        ("3, 7", [3, 7]),
        ("12+15", [12, 15]),
        ("0.5", 0.5),
        ([1, 2], [1, 2]),
        (["3-5", 0.5, "7"], [3, 4, 5, 0.5, 7]),
    ],
)
def test_layers(text, wanted):
    assert spelling.layers(text) == wanted


def test_no_layers():
    with pytest.raises(ValueError, match="layers must be like"):
        spelling.layers("top")
