"""The model API of inspect_ai: messages become requests, answers become its outputs."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from typing import Any

from inspect_ai.model import ChatMessage, GenerateConfig, ModelAPI, ModelOutput, ModelUsage
from inspect_ai.tool import ToolChoice, ToolInfo

from emosteer.programs import Program
from emosteer.spelling import layers as layers_of
from emosteer.spelling import program_of
from emosteer.sweep.plan import Generation

from .refusal import refusing
from .requests import Request
from .served import Wanted, release, served

# Tokens of a text at most, where neither the task nor the model's context says less.
MAX_TOKENS = 2048

# Settings that would change what comes out, and that this provider does not have.
UNSUPPORTED = (
    "logprobs",
    "top_logprobs",
    "prompt_logprobs",
    "num_choices",
    "best_of",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "response_schema",
    "modalities",
)


class SteeredAPI(ModelAPI):
    """A steered model for inspect_ai.

        get_model("emosteer/smollm2", bank="emotions.safetensors", steer="calm +0.1")

    Providers that differ only in `steer` share one loaded model, and requests that come at the same time
    one batch, each with its own program: an evaluation of many strengths loads once. One request may have
    a program of its own: `generate(extra_body={"steer": "calm +0.2"})`. Without a temperature the
    likeliest token is taken; with one, a request's random numbers come from its seed and prompt alone.

    Args:
        model_name: a name for `es.load`, after "emosteer/".
        base_url, api_key: there is no server; None.
        config: of inspect_ai.
        bank: the path of a bank file.
        steer: a program, or one as text: "calm +0.1; angry <= 0"; None for none.
        layers: of `es.steer`, or as text: 14, 0.66, "12-14", "12+15".
        positions: "all", "prompt", "generated", a slice or a mask as text, "-1:", "mask:0110".
        relative, preserve_norm: of `es.steer`.
        device, dtype, revision: for `es.load`.
        batch_size: requests in a batch, and in flight.

    Raises:
        ValueError: names the argument.
        FileNotFoundError: no such model or bank.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  as inspect_ai has it
        *,
        bank: str | os.PathLike[str] | None = None,
        steer: Program | str | None = None,
        layers: Any = "middle",
        positions: str = "all",
        relative: bool = False,
        preserve_norm: bool = True,
        device: str = "cpu",
        dtype: str = "float32",
        revision: str | None = None,
        batch_size: int = 32,
    ) -> None:
        super().__init__(model_name, None, api_key, [], config)
        with refusing():
            if base_url is not None:
                raise ValueError(
                    f"base_url must be None, since the model runs in this process; got {base_url!r}"
                )
            self.program = program_of(steer)
            layers = layers_of(layers)
            layers = tuple(layers) if isinstance(layers, list) else layers
            where = (layers, positions, relative, preserve_norm)
            self.served = served(
                Wanted(model_name, os.fspath(bank or ""), *where, device, dtype, revision, batch_size)
            )
            self._closed = False
            try:
                self.served.check(self.program)
            except ValueError:
                self.close()
                raise
        # inspect_ai's cache of outputs knows a model by its name and this, but not by its arguments.
        self.base_url = f"emosteer:{self.program};{self.served.id}"

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """What the steered model answers.

        Raises:
            ValueError: tools, pictures, or a setting that the provider does not have.
        """
        start = time.monotonic()
        if tools:
            raise ValueError(
                f"the provider emosteer has no tools, got {[tool.name for tool in tools]}; use a task without them"
            )
        _check(config)
        body = config.extra_body or {}
        program = program_of(body["steer"]) if "steer" in body else self.program
        self.served.check(program)
        prompt = self._tokens(input)
        room = config.max_tokens or MAX_TOKENS
        if self.served.context is not None:
            room = min(room, self.served.context - len(prompt))
        if room < 1:
            why = f"{len(prompt)} tokens, the model has room for {self.served.context}"
            return ModelOutput.from_content(self.model_name, "", stop_reason="model_length", error=why)
        settings = dict(top_k=config.top_k or 0, top_p=1.0 if config.top_p is None else config.top_p)
        request = Request(
            prompt,
            program,
            Generation(room, config.temperature or 0.0, **settings),  # type: ignore[arg-type]
            random.getrandbits(48) if config.seed is None else config.seed,
            tuple(stop for stop in config.stop_seqs or () if stop),
        )
        await self.served.batches.answer(request)
        answer = request.answer
        assert answer is not None
        output = ModelOutput.from_content(
            self.model_name, answer.text, stop_reason="max_tokens" if answer.full else "stop"
        )
        output.usage = ModelUsage(
            input_tokens=len(prompt), output_tokens=answer.tokens, total_tokens=len(prompt) + answer.tokens
        )
        output.time = time.monotonic() - start
        output.metadata = {"emosteer_program": str(program)}
        return output

    def _tokens(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        chat = [{"role": message.role, "content": _text(message)} for message in messages]
        tok = self.served.tok
        if tok.chat_template is None:
            text = "".join(f"{message['role']}: {message['content']}\n" for message in chat) + "assistant:"
            return tuple(tok(text).input_ids)
        text = tok.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return tuple(tok(text, add_special_tokens=False).input_ids)

    async def count_text_tokens(self, text: str) -> int:
        """By the model's own tokenizer."""
        return len(await self.tokenize(text))

    async def tokenize(self, text: str) -> list[int]:
        """By the model's own tokenizer, without special tokens."""
        return list(self.served.tok(text, add_special_tokens=False).input_ids)

    def max_tokens(self) -> int:
        """Of a text, where the task does not say."""
        return MAX_TOKENS

    def max_connections(self) -> int:
        """As many requests as a batch has."""
        return self.served.wanted.batch_size

    def connection_key(self) -> str:
        """Those that share a model share its batches."""
        return str(self.served.wanted)

    def collapse_user_messages(self) -> bool:
        """Chat templates mostly want turns to alternate."""
        return True

    def close(self) -> None:
        """Let go of the model; the last provider that has it restores it."""
        if not self._closed:
            self._closed = True
            release(self.served)


def _check(config: GenerateConfig) -> None:
    asked = [name for name in UNSUPPORTED if getattr(config, name, None)]
    if config.num_choices == 1:
        asked.remove("num_choices")
    if asked:
        raise ValueError(
            f"{asked[0]} is {getattr(config, asked[0])!r}, which the provider emosteer does not have; leave it out"
        )


def _text(message: ChatMessage) -> str:
    if not isinstance(message.content, str):
        other = {part.type for part in message.content} - {"text", "reasoning"}
        if other:
            raise ValueError(
                f"a message has {', '.join(sorted(other))}; the provider emosteer takes text only"
            )
    return message.text
