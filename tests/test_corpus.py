"""The corpus that comes along, the rules that hold it, and stories written by a model."""

import hashlib
import json
from collections import Counter

import pytest
from typer.testing import CliRunner

import emosteer as es
from emosteer.emotions.check import SHIPPED, Rules, forms, leaks, problems
from emosteer.emotions.corpus import _KEYS, DATA, PERSONS, Story
from emosteer.emotions.generation import cleaned, generate

GOOD = {
    "emotion": "calm",
    "topic": "letter",
    "person": "third",
    "text": "one two three four five six seven eight nine ten.",
}


def write(path, *entries):
    lines = [entry if isinstance(entry, (str, bytes)) else json.dumps(entry) for entry in entries]
    path.write_bytes(b"".join((x if isinstance(x, bytes) else x.encode()) + b"\n" for x in lines))
    return path


# ---- what comes along ------------------------------------------------------------------------------


def test_the_words():
    assert len(es.emotions.WORDS) == len(set(es.emotions.WORDS)) == 171


def test_the_stories():
    """All words in the same situations, none named in its own stories, told in both persons."""
    assert problems(DATA / "stories.jsonl", SHIPPED) == []
    corpus = es.emotions.corpus()
    topics = {story.topic for story in corpus}
    assert len(topics) >= 4
    assert {(s.emotion, s.topic) for s in corpus} == {(w, t) for w in es.emotions.WORDS for t in topics}
    persons = Counter(story.person for story in corpus)
    assert min(persons.values()) > 0.3 * len(corpus)


def test_the_neutral_dialogues():
    texts = es.emotions.neutral()
    assert len(set(texts)) == len(texts) >= 60
    assert es.emotions.corpus().neutral == texts


def test_checksums():
    """Whoever changes the data says so: the data card names version and checksums."""
    lines = (DATA / "SHA256SUMS").read_text(encoding="ascii").splitlines()
    said = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert set(said) == {path.name for path in DATA.iterdir()} - {
        "SHA256SUMS",
        "CARD.md",
        "story.schema.json",
    }
    for name, digest in said.items():
        assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == digest, name


def test_the_schema_says_what_the_reader_asks_for():
    schema = json.loads((DATA / "story.schema.json").read_text(encoding="utf-8"))
    assert set(schema["properties"]) == set(schema["required"]) == set(_KEYS)
    assert schema["additionalProperties"] is False
    assert schema["properties"]["person"]["enum"] == list(PERSONS)
    assert all(schema["properties"][key]["type"] == "string" for key in _KEYS)


def test_a_story_unpacks():
    label, text = Story("calm", "letter", "words")
    assert (label, text) == ("calm", "words")


def test_only_some_emotions():
    some = es.emotions.corpus().only(["calm", "joyful"])
    assert {story.emotion for story in some} == {"calm", "joyful"}
    assert some.neutral == es.emotions.neutral()
    with pytest.raises(ValueError, match="no stories of clam"):
        es.emotions.corpus().only("clam")


# ---- rules -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: expected an object with keys .*, got list"),
        ({**GOOD, "mood": "x"}, "line 2: expected an object with keys"),
        ({**GOOD, "text": " "}, "line 2: text must be a string that is not blank"),
        ({**GOOD, "person": "second"}, "line 2: person must be one of"),
        ({**GOOD, "text": 3}, "line 2: text must be a string"),
        (b'{"emotion": "\xff"}', "line 2: not UTF-8: .* at byte 13"),
        ("", "line 2: not JSON"),
        (
            {**GOOD, "text": GOOD["text"] + " How calmly."},
            "line 2: calm/letter names its own emotion: calmly",
        ),
        ({**GOOD, "text": "short."}, "line 2: calm/letter has 1 words, not 10 to 1000"),
        (GOOD, "line 2: the text of line 1 again"),
    ],
)
def test_problems_by_line(tmp_path, line, message):
    import re

    found = problems(write(tmp_path / "some.jsonl", GOOD, line), Rules())
    assert len(found) == 1
    assert re.match(message, found[0])


def test_stricter_rules(tmp_path):
    path = write(
        tmp_path / "some.jsonl",
        GOOD,
        {**GOOD, "text": GOOD["text"] + " More\u2028."},
        {**GOOD, "emotion": "joyful", "topic": "train", "text": "a b c d e f g h i j k."},
    )
    rules = Rules(("calm", "joyful", "sad"), 5, 20, ascii=True, openings=True, topics_match=True)
    assert problems(path, rules) == [
        "line 2: calm/letter is not one line of ASCII",
        "line 2: calm/letter again, first on line 1",
        "line 2: opens as line 1 does: 'one two three four five'",
        "calm: no story for train",
        "joyful: no story for letter",
        "sad: no story",
    ]
    assert problems(path, Rules()) == []
    assert problems(path, Rules(("calm",), 5, 20)) == ["line 3: emotion 'joyful' is not on the list"]


def test_an_empty_file(tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_bytes(b"")
    assert "no line is a story" in problems(path, Rules())
    with pytest.raises(FileNotFoundError):
        problems(tmp_path / "missing.jsonl", Rules())


def test_forms():
    assert forms("calm").search("she spoke calmly")
    assert forms("furious").search("in a fury") or forms("furious").search("furiously")
    assert not forms("calm").search("a scalmed thing")
    assert forms("wistfulish").search("Wistfulishness")


def test_leaks():
    stories = [Story("calm", "a", "He was sad, so sadly sad."), Story("sad", "a", "Sad it was.")]
    assert leaks(stories, ("calm", "sad")) == {("calm", "sad"): 3}


def run(*arguments):
    from emosteer.cli import app

    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_check_command(tmp_path):
    good = write(tmp_path / "good.jsonl", GOOD, {**GOOD, "text": "He sat sadly " + GOOD["text"]})
    result = run("corpus", "check", good)
    assert result.exit_code == 0
    assert "nothing wrong" in result.output
    assert "calm: sad ×1" in result.output
    bad = write(tmp_path / "bad.jsonl", GOOD, "{")
    result = run("corpus", "check", bad, "--no-leaks")
    assert result.exit_code == 1
    assert "line 2: not JSON" in result.output
    assert "1 problems" in result.output
    words = tmp_path / "words.txt"
    words.write_text("joyful\n")
    result = run("corpus", "check", good, "--words", words)
    assert result.exit_code == 1
    assert "joyful: no story" in result.output


# ---- generation ------------------------------------------------------------------------------------


class Writer:
    """A model's `generate`, writing texts that are given: sampling is not what is tested here."""

    def __init__(self, model, tok, texts):
        self.model, self.tok, self.texts, self.batches = model, tok, iter(texts), []

    def parameters(self):
        return self.model.parameters()

    def generate(self, input_ids, **kwargs):
        import torch

        self.batches.append(len(input_ids))
        rows = [self.tok(next(self.texts)).input_ids for _ in input_ids]
        width = max(map(len, rows))
        pad = torch.tensor([row + [kwargs["pad_token_id"]] * (width - len(row)) for row in rows])
        return torch.cat([input_ids, pad], 1)


def story(k):
    return f"Story {k} begins. " + " ".join(f"word{k}x{j}" for j in range(30)) + ". And it ends."


def test_generation_asks_again_for_what_it_refuses(tiny_llama, tmp_path):
    model, tok = tiny_llama
    file = tmp_path / "new.jsonl"
    loop = "the sea " * 40 + "."
    writer = Writer(
        model,
        tok,
        [story(0), story(1) + " So calm.", "Too short.", story(0), loop, story(5), story(6), story(7)],
    )
    done = generate(
        writer, tok, file, ["a letter", "a train"], emotions=["sad", "calm"], batch_rows=4, progress=False
    )
    assert done.written == 4
    assert done.refused == {"names its emotion": 1, "too short": 1, "written before": 1, "repeats itself": 1}
    assert writer.batches == [4, 3, 1]
    assert done.missing == []
    assert problems(file, Rules(topics_match=True)) == []
    got = es.emotions.read_stories(file)
    assert {(s.emotion, s.topic) for s in got} == {
        (e, t) for e in ("sad", "calm") for t in ("a letter", "a train")
    }
    assert {s.person for s in got} == {"first", "third"}


def test_generation_gives_up_and_goes_on(tiny_llama, tmp_path):
    model, tok = tiny_llama
    file = tmp_path / "new.jsonl"
    how = {"emotions": ["sad", "calm"], "batch_rows": 8, "progress": False}
    done = generate(Writer(model, tok, [story(0), "No.", "No."]), tok, file, ["a letter"], tries=2, **how)
    assert (done.written, done.missing) == (1, [("calm", "a letter")])
    with file.open("ab") as half:
        half.write(b'{"emotion": "calm", "top')  # killed in the middle of a line
    writer = Writer(model, tok, [story(3)])
    done = generate(writer, tok, file, ["a letter"], **how)
    assert (done.there, done.written, writer.batches) == (1, 1, [1])
    assert [s.emotion for s in es.emotions.read_stories(file)] == ["sad", "calm"]
    assert generate(Writer(model, tok, []), tok, file, ["a letter"], **how).written == 0


def test_generation_with_a_model(tiny_llama, tmp_path):
    """A real sampling loop, seeded; what a random model writes is no story."""
    model, tok = tiny_llama
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    outcomes = [
        generate(model, tok, file, ["a letter"], emotions=["sad"], tries=2, max_new_tokens=8, progress=False)
        for file in files
    ]
    assert outcomes[0].refused == outcomes[1].refused == {"too short": 2}
    assert files[0].read_bytes() == b""


def test_generation_refuses(tiny_llama, tmp_path):
    model, tok = tiny_llama
    with pytest.raises(ValueError, match="topics and emotions must have an entry each"):
        generate(model, tok, tmp_path / "a.jsonl", [])
    with pytest.raises(ValueError, match="tries must be at least 1, got 0"):
        generate(model, tok, tmp_path / "a.jsonl", ["x"], tries=0)
    other = write(tmp_path / "other.jsonl", {"label": "x"})
    with pytest.raises(ValueError, match="not a corpus to go on with: line 1"):
        generate(model, tok, other, ["x"])
    assert other.read_bytes() == b'{"label": "x"}\n'


def test_cleaned():
    assert cleaned("Here is a paragraph:\n\nIt rained. She  left.\nThen half a sen") == "It rained. She left."
    assert cleaned('"Go," he said. "Now!" And') == '"Go," he said. "Now!"'
    assert cleaned("no end at all") == ""
