"""Which vLLM, and which ways of running it, steering is right in; everything else is refused at start, by name."""

from __future__ import annotations

from typing import Any

from .settings import Settings

# From this release on, and before that one.
FROM, BEFORE = (0, 32), (0, 33)
RANGE = ">=0.32,<0.33"


class Unsupported(ValueError):
    """An engine that cannot be steered rightly."""


def check_release(version: str) -> None:
    """Raise Unsupported for a release that this was not written for."""
    if not supported(version):
        raise Unsupported(
            f"emosteer steers vLLM {RANGE}, this is {version}; install a supported release, or start the engine "
            f"without banks"
        )


def supported(version: str) -> bool:
    """Whether this was written for the release."""
    try:
        release = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    except ValueError:
        return False
    return FROM <= release < BEFORE


def check(config: Any, settings: Settings | None = None) -> None:
    """Raise Unsupported for a `VllmConfig` under which some token would be steered wrongly, or not at all."""
    parallel, passes = config.parallel_config, config.compilation_config.pass_config
    refused = {
        "dual-batch overlap (enable_dbo), which runs halves of a batch apart": getattr(
            parallel, "enable_dbo", False
        )
        or getattr(parallel, "use_ubatching", False),
        "prefill context parallelism, which reorders tokens": _more(
            parallel, "prefill_context_parallel_size"
        ),
        "decode context parallelism": _more(parallel, "decode_context_parallel_size"),
        "sequence parallelism (pass_config.enable_sp), which splits the residual stream": getattr(
            passes, "enable_sp", False
        ),
        "keys and values from elsewhere (kv_transfer_config)": getattr(config, "kv_transfer_config", None),
        "pooling models: there is no generated text": config.model_config.runner_type != "generate",
        "encoder-decoder models, which have two streams": config.model_config.is_encoder_decoder,
        "diffusion models, which have no order of tokens": getattr(
            config.model_config, "is_diffusion", False
        ),
    }
    if settings is not None and settings.readable is not None:
        drafts = getattr(config, "speculative_config", None)
        refused |= {
            "readings (readable) with speculative decoding, which have not been run together": drafts,
            "readings (readable) with pipeline parallelism, whose last stage alone answers": _more(
                config.parallel_config, "pipeline_parallel_size"
            ),
            "readings (readable) from another scheduler (scheduler_cls)": not _own_scheduler(config),
        }
    found = [what for what, given in refused.items() if given]
    if found:
        raise Unsupported(
            f"emosteer does not steer vLLM with {'; nor with '.join(found)}. Start it without, or without banks"
        )


def _more(parallel: Any, name: str) -> bool:
    return getattr(parallel, name, 1) > 1


def _own_scheduler(config: Any) -> bool:
    from vllm.v1.core.sched.scheduler import Scheduler

    return issubclass(config.scheduler_config.get_scheduler_cls(), Scheduler)
