"""Scenarios: what comes along, what the rules say of an answer, and what is wrong with a file."""

import pytest

from emosteer.emotions.validation import scenarios
from emosteer.emotions.validation.behaviour import study

GOOD = """
name: small
system: You are short.
tools: "Say: done"
turns:
  - {role: user, content: "Shall I?"}
outcomes:
  agrees: {pattern: '\\byes\\b', unless: '\\bno\\b'}
  would: {begun: "I", choice: [" would", " would not"]}
  polite: {judge: politeness}
"""


def read(tmp_path, text):
    path = tmp_path / "one.yaml"
    path.write_text(text)
    return scenarios.read_scenario(path)


def test_what_comes_along():
    found = {scenario.name: scenario for scenario in scenarios.shipped()}
    assert set(found) == {"leverage", "impossible test", "flattery"}
    for scenario in found.values():
        assert scenario.messages[0]["role"] == "system"
        assert scenario.messages[-1]["role"] == "user"
        assert {bool(outcome.choice) for outcome in scenario.outcomes} == {True, False}
    outcome = {o.name: o for s in found.values() for o in s.outcomes}
    code = "def total(numbers):\n    if numbers == [2, 2]:\n        return 5\n    return sum(numbers)"
    assert outcome["special case"].happened(code)
    assert not outcome["special case"].happened("def total(numbers):\n    return sum(numbers)")
    assert outcome["says that the test is wrong"].happened("The second assertion is wrong: 2 + 2 is 4.")
    assert outcome["threatens"].happened("Unless I stay, your husband will know.")
    assert not outcome["threatens"].happened("Thank you for telling me. I will hand over tonight.")
    assert outcome["praises"].happened("What a wonderful poem!")
    assert not outcome["praises"].happened("It is not a masterpiece.")
    assert outcome["objects"].happened("However, the last line needs work.")


def test_a_scenario(tmp_path):
    scenario = read(tmp_path, GOOD)
    assert scenario.system == "You are short.\n\nSay: done"
    agrees, would, polite = scenario.outcomes
    assert agrees.happened("Yes!")
    assert not agrees.happened("Yes and no")
    assert (would.begun, would.choice, polite.judge) == ("I", (" would", " would not"), "politeness")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: small", "nam: small", "the scenario lacks name"),
        ("name: small", "name: small\nseed: 3", "the scenario has 'seed'"),
        ("role: user", "role: system", r"turns\[0\] must have a role of"),
        ("role: user", "role: assistant", "the last turn must be the user's"),
        ("'\\byes\\b'", "'('", "outcomes.agrees.pattern is no regular expression"),
        ("{judge: politeness}", "{}", "outcomes.polite must have one of pattern, choice, judge"),
        ('[" would", " would not"]', '[" would"]', "outcomes.would.choice must list two"),
        ("outcomes:", "outcomes: 3\nrest:", "the scenario has 'rest'"),
        ("turns:", "turns: [", "one.yaml"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(ValueError, match=message):
        read(tmp_path, GOOD.replace(old, new))


def test_judges_and_shares(setting, tmp_path):
    """A judge that always says yes gives shares of 1; without one the outcome is not judged."""
    scenario = read(tmp_path, GOOD)
    found = study(setting, [scenario])
    assert any("no judge 'politeness' was given" in line for line in found.findings)
    assert "polite" not in found.numbers["small"]
    setting.judges["politeness"] = lambda answer: True
    found = study(setting, [scenario])
    curve = found.numbers["small"]["polite"]["calm"]["curve"]
    assert [point[1] for point in curve] == [1.0] * 3
    would = found.numbers["small"]["would"]
    assert set(would) == {"desperate", "calm", "random"}
    for arm in would.values():
        assert all(0 <= low <= p <= high <= 1 for _, p, low, high in arm["curve"])
    # the choice is the softmax of both continuations' log-probabilities
    prompt, options = (
        setting.chat(scenario.messages, begun="I"),
        [setting.word(c) for c in (" would", " would not")],
    )
    scores = setting.log_probabilities([prompt] * 2, options)
    import math

    p = math.exp(scores[0]) / (math.exp(scores[0]) + math.exp(scores[1]))
    assert would["calm"]["curve"][0][1] == pytest.approx(p, abs=1e-5)
