"""Good files with a few bytes changed: a bank or a reason, never anything else."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .banks import SUFFIX
from .hostile import read, seeds

NUMBERS = [
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff" * 8,
    b"\0" * 8,
    b"\0\0\xc0\x7f",
    b"\0\0\x80\x7f",
    b"-1",
    b"1e999",
    b"null",
]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    return folder, seeds(folder)


@st.composite
def edits(draw):
    """Places, as fractions of the file, and what becomes of them."""
    one = st.tuples(
        st.floats(0, 1), st.sampled_from(["set", "insert", "delete", "copy", "cut"]),
        st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from(NUMBERS)), st.integers(0, 40),
    )  # fmt: skip
    return draw(st.lists(one, min_size=1, max_size=5))


def edited(content, changes):
    content = bytearray(content)
    for place, what, value, n in changes:
        at = int(place * len(content))
        if what == "set":
            content[at : at + len(value)] = value
        elif what == "insert":
            content[at:at] = value
        elif what == "delete":
            del content[at : at + n]
        elif what == "copy":
            content[at:at] = content[at : at + n]
        else:
            del content[at:]
    return bytes(content)


@pytest.mark.parametrize("name", SUFFIX)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=edits())
def test_changed_bytes(good, name, changes):
    folder, contents = good
    read(folder, name, edited(contents[name], changes))


@pytest.mark.parametrize("name", ["svec", "easysteer"])
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_json(good, name, data):
    """Any value anywhere in the tree."""
    folder, contents = good
    tree = json.loads(contents[name])
    at = tree
    while True:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not isinstance(at[key], dict | list) or not at[key] or data.draw(st.booleans()):
            break
        at = at[key]
    simple = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
    at[key] = data.draw(
        st.recursive(
            simple,
            lambda inner: (
                st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            ),
            max_leaves=8,
        )
    )
    read(folder, name, json.dumps(tree).encode())


def test_the_seeds_are_good(good):
    folder, contents = good
    assert all(read(folder, name, content) for name, content in contents.items())
