"""`emosteer serve`: OpenAI's own client, several at once, streaming and not; bad programs beside good ones."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

import emosteer as es
from emosteer.vllm import params, readings

from ..patience import PATIENCE
from .conftest import ENVIRONMENT
from .test_readings import CONCEPTS, LAYERS, streams_of
from .test_requests import BAD

openai = pytest.importorskip("openai")

PROMPT = "My neighbour came in and said:"
DEFAULT = "weary +14"
LENGTH = 10
PROGRAMS = ["calm +14", "angry +14; joyful <= 0", "joyful turned 50", "proud = 9", "desperate -12", "none"]


@pytest.fixture(scope="module")
def server(running):
    """Where it answers."""
    return running[0]


@pytest.fixture(scope="module")
def running(bank_file, tmp_path_factory, unused_port):
    """`(address, process)`."""
    log = tmp_path_factory.mktemp("server") / "log"
    options = [
        "--bank", f"random={bank_file}", "--default", DEFAULT, "--slots", "3", "--port", str(unused_port),
        "--readable", "5,15",
        "--dtype", "float32", "--max-model-len", "192", "--max-num-seqs", "20", "--max-num-batched-tokens", "64",
        "--enforce-eager", "--gpu-memory-utilization", "0.2",
    ]  # fmt: skip
    command = [sys.executable, "-c", "from emosteer.cli import main; main()", "serve", "smollm2", *options]
    environment = {**os.environ, **ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with open(log, "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    base = f"http://127.0.0.1:{unused_port}"
    try:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                urllib.request.urlopen(f"{base}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, log.read_text()[-4000:]
                assert time.monotonic() < until, log.read_text()[-4000:]
                time.sleep(0.5)
        yield base, process
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture(scope="module")
def unused_port():
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def wanted(model, bank):
    """Text of each program by transformers."""
    loaded, tok = model
    found = {}
    for text in [*PROGRAMS, DEFAULT]:
        with es.steer(loaded, bank, es.spelling.program(text)):
            ids = tok(PROMPT, return_tensors="pt")
            out = loaded.generate(
                **ids, max_new_tokens=LENGTH, min_new_tokens=LENGTH, eos_token_id=None, do_sample=False
            )
        found[text] = tok.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert len(set(found.values())) >= 5
    return found


def test_many_clients_at_once(server, wanted):
    """Each answer is that of its program, streamed or not; each bad program a 400 in words, before anything streams."""
    client = openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=PATIENCE)
    usual = dict(model="smollm2", prompt=PROMPT, max_tokens=LENGTH, temperature=0.0)

    async def good(program, stream):
        body = {"ignore_eos": True}
        if program is not None:
            body["vllm_xargs"] = params(program)
        if not stream:
            return (await client.completions.create(**usual, extra_body=body)).choices[0].text
        parts = await client.completions.create(**usual, extra_body=body, stream=True)
        return "".join([part.choices[0].text async for part in parts if part.choices])

    async def bad(args, stream):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.completions.create(**usual, extra_body={"vllm_xargs": args}, stream=stream)
        return str(caught.value)

    async def everybody():
        texts = [(program, stream) for program in [*PROGRAMS, None] for stream in (False, True)]
        # Over HTTP vLLM itself refuses what is neither text, number nor list of them.
        refused = [what for what in BAD if what != "layers of another type"]
        bads = (bad(BAD[what][0], k % 2 == 0) for k, what in enumerate(refused))
        found = await asyncio.gather(*(good(*one) for one in texts), *bads)
        return texts, found[: len(texts)], refused, found[len(texts) :]

    texts, answers, refused, reasons = asyncio.run(everybody())
    for (program, _), answer in zip(texts, answers):
        assert answer == wanted[DEFAULT if program is None else program]
    for what, reason in zip(refused, reasons):
        assert re.search(BAD[what][1], reason), (what, reason)


def test_chat_and_responses_take_programs_too(server):
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=PATIENCE)
    messages = [{"role": "user", "content": "How are you?"}]
    chat = dict(model="smollm2", messages=messages, max_tokens=8, temperature=0.0)
    plain, steered = (
        client.chat.completions.create(**chat, extra_body={"vllm_xargs": params(program)})
        .choices[0]
        .message.content
        for program in ("none", "calm +20")
    )
    assert plain != steered
    with pytest.raises(openai.BadRequestError, match="did you mean 'calm'"):
        client.chat.completions.create(
            **chat, extra_body={"vllm_xargs": {"emosteer": "clam +1"}}, stream=True
        )
    with pytest.raises(openai.BadRequestError, match="did you mean 'calm'"):
        client.responses.create(
            model="smollm2", input="How are you?", extra_body={"vllm_xargs": {"emosteer": "clam +1"}}
        )
    response = client.responses.create(
        model="smollm2", input="How are you?", temperature=0.0, max_output_tokens=8,
        extra_body={"vllm_xargs": params("calm +20")},
    )  # fmt: skip
    assert response.output_text == steered


def test_beam_search_is_refused(server):
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=PATIENCE)
    with pytest.raises(openai.BadRequestError, match="beam search cannot be steered"):
        client.completions.create(
            model="smollm2", prompt=PROMPT, max_tokens=4,
            extra_body={"use_beam_search": True, "vllm_xargs": params("calm +20")},
        )  # fmt: skip
    with pytest.raises(openai.APIStatusError, match="beam search cannot be steered"):  # the default would be
        client.completions.create(
            model="smollm2", prompt=PROMPT, max_tokens=4, extra_body={"use_beam_search": True}
        )


def test_the_banks_are_listed(server, bank):
    with urllib.request.urlopen(f"{server}/v1/emosteer/banks", timeout=PATIENCE) as answer:
        found = json.load(answer)
    assert found["banks"]["random"]["concepts"] == list(bank.names)
    assert found["layers"] == list(range(30))
    assert found["default"]["emosteer"] == es.spelling.spelled(es.spelling.program(DEFAULT))
    assert found["adapters"] == {}


def test_readings_come_with_the_answer(server, model, bank):
    """Those of transformers, of a completion and of a chat; alarms end a request, streamed or not."""
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=PATIENCE)
    loaded, tok = model
    usual = dict(model="smollm2", prompt=PROMPT, max_tokens=LENGTH, temperature=0.0)
    reading = dict(read=CONCEPTS, read_layers=LAYERS, read_unit="projection")

    def asked(program, **more):
        return {"vllm_xargs": params(program, **more), "ignore_eos": True}

    answer = client.completions.create(
        **usual, extra_body=asked("calm +14", **reading) | {"return_token_ids": True}
    )
    found = readings(answer)
    prompt = tok(PROMPT).input_ids
    written = [*prompt, *answer.choices[0].token_ids]
    streams = streams_of(loaded, bank, "calm +14", written[:-1])
    wanted = np.stack([streams[layer][len(prompt) - 1 :].T for layer in LAYERS])
    assert found.values.shape == wanted.shape == (2, 2, LENGTH)
    assert np.abs(found.values - wanted).max() <= 2e-4 * np.abs(wanted).max()
    again = readings(json.loads(answer.to_json()))
    assert (again.values == found.values).all()

    messages = [{"role": "user", "content": "How are you?"}]
    chat = client.chat.completions.create(
        model="smollm2", messages=messages, max_tokens=4, temperature=0.0, extra_body=asked("none", **reading)
    )
    assert readings(chat).values.shape == (2, 2, 4)

    most = float(found.of("calm", 5).max())
    stop = dict(stop_at={"calm": most - 1e-3}, read_layers=5, read_unit="projection")
    stopped = client.completions.create(**usual, extra_body=asked("calm +14", **stop))
    alarm = readings(stopped).alarm
    first = int(np.argmax(found.of("calm", 5) > most - 1e-3))
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.usage.completion_tokens == first + 1
    assert (alarm["concept"], alarm["layer"], alarm["place"]) == ("calm", 5, len(prompt) - 1 + first)
    *_, last = client.completions.create(**usual, extra_body=asked("calm +14", **stop), stream=True)
    assert last.choices[0].finish_reason == "stop"
    assert last.choices[0].stop_reason.startswith("emosteer: calm ")
    assert readings(last).alarm == alarm
    with pytest.raises(openai.BadRequestError, match="did you mean 'calm'"):
        client.completions.create(**usual, extra_body={"vllm_xargs": params(read="clam", read_layers=5)})


def test_streams_and_several_prompts_tell_the_same_readings(server):
    """In the chunk that ends a text, in the last event of a response, in each choice; none that did not ask."""
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=PATIENCE)
    asked = params("calm +14", read=CONCEPTS, read_layers=LAYERS, read_unit="projection")
    body = {"extra_body": {"vllm_xargs": asked, "ignore_eos": True}}
    usual = dict(model="smollm2", temperature=0.0)
    prompts = [PROMPT, "The letter had lain on the table", "We"]

    def same(found, wanted):
        found, wanted = readings(found), readings(wanted)
        assert (found.concepts, found.layers, found.places) == (wanted.concepts, wanted.layers, wanted.places)
        np.testing.assert_allclose(found.values, wanted.values, rtol=1e-3, atol=1e-3)

    alone = [client.completions.create(**usual, prompt=one, max_tokens=5, **body) for one in prompts]
    several = client.completions.create(**usual, prompt=prompts, max_tokens=5, **body)
    for choice, wanted in zip(several.choices, alone):
        same(choice, wanted)
    ends = {}
    for chunk in client.completions.create(**usual, prompt=prompts, max_tokens=5, stream=True, **body):
        (choice,) = chunk.choices
        if choice.finish_reason is None:
            with pytest.raises(ValueError, match="no readings"):
                readings(chunk)
        else:
            ends[choice.index] = chunk
    for k, wanted in enumerate(alone):
        same(ends[k], wanted)

    messages = [{"role": "user", "content": "How are you?"}]
    chat = dict(**usual, messages=messages, max_tokens=4, **body)
    wanted = client.chat.completions.create(**chat)
    counted = client.chat.completions.create(**chat, stream=True, stream_options={"include_usage": True})
    *_, end, usage = list(counted)
    assert usage.usage.completion_tokens == 4
    same(end, wanted)
    *_, done = client.responses.create(
        **usual, input="How are you?", max_output_tokens=4, stream=True,
        extra_body={"vllm_xargs": asked},
    )  # fmt: skip
    same(done.response, wanted)

    plain = client.completions.create(**usual, prompt=prompts[:2], max_tokens=2, stream=True)
    assert all(not hasattr(chunk, "kv_transfer_params") for chunk in plain)


def test_an_engine_that_is_killed_is_told_at_once(running):
    """The last test of this server: who waits is answered, and the server ends."""
    psutil = pytest.importorskip("psutil")
    base, process = running
    client = openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0, timeout=PATIENCE)
    children = psutil.Process(process.pid).children(recursive=True)
    (engine,) = [one for one in children if "EngineCore" in " ".join(one.cmdline())]
    stream = client.completions.create(
        model="smollm2", prompt=PROMPT, max_tokens=150, temperature=0.0, stream=True,
        extra_body={"vllm_xargs": params("calm +14"), "ignore_eos": True},
    )  # fmt: skip
    next(iter(stream))
    engine.kill()
    start = time.monotonic()
    with pytest.raises(openai.APIError):
        for _ in stream:
            pass
    assert time.monotonic() - start < 30
    process.wait(60)
