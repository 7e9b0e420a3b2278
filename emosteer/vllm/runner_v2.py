"""vLLM's second model runner, its default wherever Triton is: its requests come and go through a `ModelState`."""

from __future__ import annotations

from functools import wraps
from typing import Any

from .worker import WorkerSteering

# What is used of the runner's model state and of its batches; another build is refused by name.
NEEDED = ("add_request", "remove_request", "prepare_inputs")


class _Second:
    """A request is added when it is scheduled first, removed when it has finished or is preempted, and added again.

    `prepare_inputs` is called for each pass right before the model runs or a graph is replayed. Its batch has the
    spans and places on the device, where adaptive speculation moves them, and names requests in its own order; passes
    of nobody's have names that were never added.
    """

    def attach(self, steering: WorkerSteering) -> None:
        state = steering.runner.model_state
        missing = [name for name in NEEDED if not hasattr(state, name)]
        if missing:
            raise RuntimeError(
                f"this build of vLLM keeps requests in {type(state).__name__}, which has no {missing[0]!r}; emosteer "
                f"does not know it"
            )
        add, remove, prepare = state.add_request, state.remove_request, state.prepare_inputs

        @wraps(add)
        def add_request(index: int, new: Any) -> Any:
            found = add(index, new)
            steering.add(new.req_id, new.sampling_params, new.prompt_len)
            return found

        @wraps(remove)
        def remove_request(request: str) -> Any:
            steering.drop(request)
            return remove(request)

        @wraps(prepare)
        def prepare_inputs(batch: Any, states: Any) -> Any:
            if any(steering.knows(request) for request in batch.req_ids):
                steering.begin(batch.req_ids, batch.query_start_loc, batch.positions, batch.num_tokens)
            else:
                steering.idle()
            return prepare(batch, states)

        state.add_request, state.remove_request, state.prepare_inputs = (
            add_request,
            remove_request,
            prepare_inputs,
        )


PART = _Second()
