"""vLLM's front end: what a request asks for is looked at before it is queued, and refused in words where it cannot be.

Two places see every request: the sampling parameters as the HTTP server makes them, where an error still is the
answer's status, and the input processor, through which requests from Python come too and where the length of the prompt
is known.
"""

from __future__ import annotations

from functools import wraps
from inspect import signature
from typing import Any

import numpy as np

from . import answers
from .asking import KEYS, PROGRAM, PROMPT, Asked
from .deployment import Deployment, Placed
from .settings import KEY, Settings

NO_BANKS = (
    f'this engine has no banks to steer with: start it with additional_config={{"{KEY}": {{"banks": '
    f'{{"emotions": "emotions.safetensors"}}}}}} (`emosteer serve MODEL --bank emotions.safetensors`)'
)


class Front:
    """What this process knows of its engine.

    Attributes:
        deployment: the banks of the engine that was made last, None for one without.
    """

    def __init__(self) -> None:
        self.deployment: Deployment | None = None

    def placed(
        self, extra_args: Any, deployment: Deployment | None, adapter: str | None = None
    ) -> tuple[Asked | None, Placed | None]:
        """What a request asks for, or does by default; `(None, None)` for one that is nothing of ours.

        `adapter` is the name of the LoRA adapter that it runs under.

        Raises:
            VLLMValidationError: what is wrong with it, for an answer with the status 400.
        """
        try:
            asked = Asked.of(extra_args)
            default = None if deployment is None else deployment.settings.default_of(adapter)
            if asked is None:
                asked = default
                if asked is None:
                    return None, None
            if deployment is None:
                raise ValueError(NO_BANKS)
            asked = asked.over(default)
            deployment.reads(asked)
            return asked, deployment.placed(asked)
        except (TypeError, ValueError) as error:
            raise refusal(str(error)) from None


FRONT = Front()


def refusal(message: str) -> Exception:
    """The error of vLLM for a bad request, which its server answers with 400."""
    from vllm.exceptions import VLLMValidationError

    return VLLMValidationError(message, parameter=PROGRAM)


def deployment_of(config: Any) -> Deployment | None:
    """The banks of an engine with this `VllmConfig`."""
    settings = Settings.of(config.additional_config)
    if settings is None:
        return None
    model = config.model_config
    return Deployment(settings, model.get_total_num_hidden_layers(), model.get_hidden_size())


def patch() -> None:
    """Have vLLM's front end look at requests; what asks for nothing of ours goes its way untouched."""
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.input_processor import InputProcessor

    if getattr(InputProcessor, "emosteer_patched", False):
        return
    InputProcessor.emosteer_patched = True  # type: ignore[attr-defined]
    make, process, from_optional = (
        InputProcessor.__init__,
        InputProcessor.process_inputs,
        SamplingParams.from_optional,
    )

    parameters = signature(process)

    @wraps(make)
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        make(self, vllm_config, *args, **kwargs)
        self.emosteer = FRONT.deployment = deployment_of(vllm_config)
        _refuse_in_beam_search()
        if self.emosteer is not None and self.emosteer.readable:
            answers.patch()

    @wraps(process)
    def process_inputs(
        self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if not isinstance(params, SamplingParams):
            return process(self, request_id, prompt, params, *args, **kwargs)
        given: dict[str, Any] = {}
        if self.emosteer is not None:
            given = parameters.bind(self, request_id, prompt, params, *args, **kwargs).arguments
        adapter = getattr(given.get("lora_request"), "lora_name", None)
        asked, placed = FRONT.placed(params.extra_args, self.emosteer, adapter)
        if asked is None or (placed is None and asked.reads is None):
            return process(self, request_id, prompt, params, *args, **kwargs)
        if given.get("resumable"):
            raise refusal(
                "a session whose prompt grows (resumable) cannot be steered: positions have no fixed prompt"
            )
        if asked.reads is not None and params.n > 1:
            raise refusal(f"n={params.n} samples of one request cannot be read; ask for each by itself")
        request = process(self, request_id, prompt, params, *args, **kwargs)
        whole = request.prompt_embeds if request.prompt_token_ids is None else request.prompt_token_ids
        counted = asked.prompt or len(whole)
        if counted > len(whole):
            raise refusal(f"{PROMPT} counts {counted} tokens as the prompt, which has {len(whole)}")
        if placed is not None:
            request.cache_salt = "|".join(filter(None, [request.cache_salt, placed.salt(counted)]))
        reads = self.emosteer.reads(asked)
        if reads is not None and reads.places(np.arange(len(whole) - 1), counted).any():
            request.sampling_params.skip_reading_prefix_cache = True  # what is not computed cannot be read
        request.sampling_params.extra_args = {**(params.extra_args or {}), **asked.extra_args()}
        return request

    @wraps(from_optional)
    def checked_from_optional(*args: Any, **kwargs: Any) -> Any:
        if any(key in KEYS or str(key).startswith(PROGRAM) for key in kwargs.get("extra_args") or ()):
            FRONT.placed(kwargs["extra_args"], FRONT.deployment)
        return from_optional(*args, **kwargs)

    InputProcessor.__init__ = __init__  # type: ignore[method-assign]
    InputProcessor.process_inputs = process_inputs  # type: ignore[method-assign]
    SamplingParams.from_optional = staticmethod(checked_from_optional)  # type: ignore[method-assign]


def _refuse_in_beam_search() -> None:
    """Beam search drops a request's `extra_args` and asks anew with every token: it would run unsteered, or with
    every beam's text for a prompt.
    """
    from vllm.entrypoints.generate.beam_search.offline import BeamSearchOfflineMixin
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    if getattr(BeamSearchOfflineMixin, "emosteer_patched", False):
        return
    BeamSearchOfflineMixin.emosteer_patched = True

    def refusing_default(search: Any) -> Any:
        @wraps(search)
        def beam_search(self: Any, *args: Any, **kwargs: Any) -> Any:
            deployment = FRONT.deployment
            if deployment is not None and deployment.settings.defaults:
                raise refusal("beam search cannot be steered, and this engine has a default program")
            return search(self, *args, **kwargs)

        return beam_search

    def refusing(make: Any) -> Any:
        @wraps(make)
        def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> Any:
            if any(str(key).startswith(PROGRAM) for key in self.vllm_xargs or ()):
                raise refusal("beam search cannot be steered; leave out use_beam_search or the program")
            return make(self, *args, **kwargs)

        return to_beam_search_params

    for search in (BeamSearchOfflineMixin, BeamSearchOnlineMixin):
        search.beam_search = refusing_default(search.beam_search)
    for protocol in (ChatCompletionRequest, CompletionRequest):
        protocol.to_beam_search_params = refusing(protocol.to_beam_search_params)
