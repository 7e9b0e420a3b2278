"""vLLM's first model runner (on CPUs, and on GPUs without Triton)."""

from __future__ import annotations

from functools import wraps
from typing import Any

from .worker import WorkerSteering

# What is used of the runner; another build is refused by name.
NEEDED = ("_prepare_inputs", "_dummy_run", "input_batch", "requests", "query_start_loc", "positions")


class _First:
    """A request lives in `runner.requests` until it has finished; a preempted one stays there.

    Its programs are asked for when its tokens are laid out, in the order of `input_batch.req_ids`: after the batch
    has been updated, and whatever was reordered on the way.
    """

    def attach(self, steering: WorkerSteering) -> None:
        runner = steering.runner
        missing = [name for name in NEEDED if not hasattr(runner, name)]
        if missing:
            raise RuntimeError(
                f"this build of vLLM runs models with {type(runner).__name__}, which has no {missing[0]!r}; emosteer "
                f"does not know it"
            )
        prepare, dummy = runner._prepare_inputs, runner._dummy_run

        @wraps(prepare)
        def prepare_inputs(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            found = prepare(scheduled, *args, **kwargs)
            for new in scheduled.scheduled_new_reqs:
                state = runner.requests[new.req_id]
                steering.add(new.req_id, state.sampling_params, state.num_prompt_tokens)
            steering.keep(runner.requests)
            steering.begin(
                runner.input_batch.req_ids,
                runner.query_start_loc.gpu,
                _positions(runner),
                scheduled.total_num_scheduled_tokens,
            )
            return found

        @wraps(dummy)
        def dummy_run(*args: Any, **kwargs: Any) -> Any:
            steering.idle()
            return dummy(*args, **kwargs)

        runner._prepare_inputs, runner._dummy_run = prepare_inputs, dummy_run


def _positions(runner: Any) -> Any:
    """The places that this pass computes with, on the device."""
    return getattr(runner.positions, "gpu", runner.positions)


PART = _First()
