"""Readings in those answers of vLLM's server that it has no field for: streams, and completions of several prompts.

What was read of a request comes out of the engine as the `kv_transfer_params` of its last output. vLLM hands that on
in whole answers (of several prompts only the first's) and in the last event of streamed responses. Here the chunk of
a stream that holds a finish reason gets it too, and each choice of a completion its own.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import wraps
from inspect import signature
from typing import Any

from .ledger import ENTRY

FIELD = "kv_transfer_params"


def patch() -> None:
    """Have vLLM's server tell what was read, also where it has no field for it."""
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion

    if getattr(OpenAIServingCompletion, "emosteer_tells", False):
        return
    OpenAIServingCompletion.emosteer_tells = True
    OpenAIServingCompletion.request_output_to_completion_response = _each_choice(
        OpenAIServingCompletion.request_output_to_completion_response
    )
    OpenAIServingCompletion.completion_stream_generator = _streamed(
        OpenAIServingCompletion.completion_stream_generator
    )
    OpenAIServingChat.chat_completion_stream_generator = _streamed(
        OpenAIServingChat.chat_completion_stream_generator
    )


def _each_choice(make: Any) -> Any:
    """Of a completion of several prompts each choice holds what was read of its own."""

    @wraps(make)
    def request_output_to_completion_response(self: Any, results: Any, *args: Any, **kwargs: Any) -> Any:
        response = make(self, results, *args, **kwargs)
        if len(results) == len(response.choices) > 1:  # one sample each, as whatever is read has
            for choice, result in zip(response.choices, results):
                if _read_of(result) is not None:
                    setattr(choice, FIELD, result.kv_transfer_params)
        return response

    return request_output_to_completion_response


def _streamed(make: Any) -> Any:
    """A generator of a stream's events from `RequestOutput`s, with what was read in the chunks that end a text."""
    parameters = signature(make)

    @wraps(make)
    async def stream(*args: Any, **kwargs: Any) -> Any:
        given, untold = parameters.bind(*args, **kwargs), {}

        async def heard(results: AsyncIterator[Any]) -> Any:
            async for found in results:
                place, result = found if isinstance(found, tuple) else (0, found)
                if _read_of(result) is not None:
                    untold[place] = result.kv_transfer_params
                yield found

        given.arguments["result_generator"] = heard(given.arguments["result_generator"])
        async for event in make(*given.args, **given.kwargs):
            yield _telling(event, untold) if untold else event

    return stream


def _telling(event: str, untold: dict[int, Any]) -> str:
    """The event, with what was read of the text that it ends; that is then no longer untold."""
    head, data = "data: ", event.strip().removeprefix("data: ")
    if not data.startswith("{"):
        return event
    chunk = json.loads(data)
    for choice in chunk.get("choices") or ():
        if choice.get("finish_reason") is not None and choice["index"] in untold:
            chunk[FIELD] = untold.pop(choice["index"])
            return f"{head}{json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"
    return event


def _read_of(result: Any) -> Any:
    return (result.kv_transfer_params or {}).get(ENTRY)
