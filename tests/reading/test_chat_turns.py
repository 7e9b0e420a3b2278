"""Where the messages of a chat lie, under templates of every kind: the tokens of a span are the message."""

import pytest

import emosteer as es
from emosteer.models.chat import rendered, token_ids

from ..conftest import byte_tokenizer

CHAT = [
    {"role": "user", "content": "Terrified of the dark?"},
    {"role": "assistant", "content": "user"},  # a word of the template
    {"role": "user", "content": "  Angry now, so angry.  "},
]
SYSTEM = {"role": "system", "content": "Be kind."}
LOOP = "{% for m in messages %}"
TEMPLATES = {
    "a space before": LOOP + "<{{ m['role'] }}> {{ m['content'] }}</s>{% endfor %}",
    "letters before": LOOP + "{{ m['role'] }}:h{{ m['content'] | trim }}\n{% endfor %}",
    "trimmed": LOOP + "<s>{{ m['role'] }}\n{{ m['content'] | trim }}</s>{% endfor %}",
    "user first": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% if messages[0]['role'] != 'user' or messages | length < 2 %}{{ raise_exception('user first') }}{% endif %}"
    "<s>" + LOOP + "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}",
    "thoughts": LOOP + "{% set c = m['content'] %}{% if not loop.last and '</think>' in c %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}<s>{{ m['role'] }}\n{{ c }}</s>\n{% endfor %}",
}
FOLDED = (
    "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}<s>{% for m in rest %}<{{ m['role'] }}>"
    "{{ s if loop.first else '' }}{{ m['content'] | trim }}</s>{% endfor %}"
)


def spans(template, chat):
    tok = byte_tokenizer()
    tok.chat_template = template
    found = rendered(tok, chat)
    assert "".join(found.pieces) == found.text
    return ["".join(found.pieces[t.start : t.stop]) for t in found.turns], [t.role for t in found.turns]


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_span_is_its_message(kind):
    texts, roles = spans(TEMPLATES[kind], CHAT)
    assert roles == ["user", "assistant", "user"]
    for text, message in zip(texts, CHAT):
        assert message["content"].strip() in text
        assert len(text.strip()) <= len(message["content"].strip()) + 2  # a token may reach over the edge


def test_a_system_text_inside_the_users_turn():
    texts, roles = spans(FOLDED, [SYSTEM, *CHAT])
    assert roles[:2] == ["system", "user"]
    assert texts[0] == "Be kind."
    assert texts[1] == "Terrified of the dark?"


def test_earlier_thoughts_are_dropped():
    chat = [CHAT[0], {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."}, CHAT[2]]
    assert spans(TEMPLATES["thoughts"], chat)[0][1] == "Yes."
    last = [*chat, {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nSo."}]
    texts, _ = spans(TEMPLATES["thoughts"], last)
    assert texts[1] == "Yes."
    assert texts[3] == "So."


def test_what_cannot_be_told_is_refused():
    with pytest.raises(ValueError, match=r"refuses this chat \(system, user\): .*no system"):
        spans(TEMPLATES["user first"], [SYSTEM, CHAT[0]])
    dropped = LOOP + "{% if m['role'] != 'system' %}<s>{{ m['content'] }}{% endif %}{% endfor %}"
    with pytest.raises(ValueError, match=r"leaves out message 0 \(system\)"):
        spans(dropped, [SYSTEM, CHAT[0]])
    with pytest.raises(ValueError, match=r"rewrites message 0 \(user\)"):
        spans(LOOP + "<s>{{ m['content'] | upper }}{% endfor %}", CHAT[:1])
    with pytest.raises(ValueError, match="content must be a string"):
        spans(TEMPLATES["trimmed"], [{"role": "user", "content": None}])


def with_bos():
    """A tokenizer that begins each text with <s>, as its template does."""
    from tokenizers.processors import TemplateProcessing

    tok = byte_tokenizer()
    tok.chat_template = "<s>" + LOOP + "{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    tok.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tok.bos_token_id)]
    )
    return tok


def test_a_rendered_chat_begins_once(tiny_llama):
    tok = with_bos()
    text = tok.apply_chat_template(CHAT, tokenize=False)
    assert tok(text).input_ids[:2] == [tok.bos_token_id] * 2
    for given in (text, CHAT):
        assert rendered(tok, given).ids.count(tok.bos_token_id) == 1
        assert token_ids(tok, given).count(tok.bos_token_id) == 1
    assert token_ids(tok, "plain")[0] == tok.bos_token_id


def test_extract_takes_chats(tiny_llama):
    model, _ = tiny_llama
    tok = with_bos()
    chats = [
        (name, [{"role": "user", "content": f"{name} {k} words here"}]) for name in "ab" for k in range(3)
    ]
    texts = [(name, tok.apply_chat_template(chat, tokenize=False)) for name, chat in chats]
    found, wanted = (es.extract(model, tok, s, skip_tokens=2, progress=False) for s in (chats, texts))
    for layer in found.layers:
        assert float((found.directions[layer] - wanted.directions[layer]).abs().max()) < 1e-5
    with pytest.raises(TypeError, match="message"):
        es.extract(model, tok, [("a", ["no message"]), ("b", "text")])
