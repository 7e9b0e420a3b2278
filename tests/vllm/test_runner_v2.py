"""The part for vLLM's second model runner, on its own batches and model state: no GPU here runs the runner itself."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from emosteer.vllm import params, runner_v2
from emosteer.vllm.rows import Rows
from emosteer.vllm.token_reads import TokenReads, bring
from emosteer.vllm.tokens import TokenRows

CPU = torch.device("cpu")


@pytest.fixture
def second(engine):
    """The steering of the running engine as a second runner would hold it, with vLLM's own model state."""
    from vllm.v1.worker.gpu.model_states import init_model_state

    runner = engine.llm.llm_engine.model_executor.driver_worker.worker.model_runner
    state = init_model_state(runner.vllm_config, runner.model, None, CPU)
    steering = copy.copy(engine.steering)
    steering.runner = SimpleNamespace(model_state=state, vllm_config=runner.vllm_config, device=CPU)
    steering.rows = Rows(steering.deployment, 40, CPU)
    steering.tokens = TokenRows(steering.rows, 200, 20, CPU)
    steering.reads = TokenReads(steering.deployment, 200, 20, CPU)
    steering._placed = {}
    runner_v2.PART.attach(steering)
    return steering, state


def new(name, args, prompt, computed=0, written=0):
    """A request as the scheduler announces it; one that is resumed has written something before."""
    from vllm import SamplingParams
    from vllm.v1.core.sched.output import NewRequestData

    return NewRequestData(
        req_id=name,
        prompt_token_ids=[1] * prompt,
        mm_features=[],
        sampling_params=SamplingParams(extra_args=args),
        pooling_params=None,
        block_ids=([],),
        num_computed_tokens=computed,
        lora_request=None,
        prefill_token_ids=[1] * (prompt + written),
    )


def batch(names, starts, lengths, padding=0):
    """vLLM's `InputBatch` of these requests, each from a place on; `padding` tokens more for a graph."""
    from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers

    buffers = InputBuffers(20, 200, CPU)
    total = sum(lengths)
    made = InputBatch.make_dummy(len(names), total, buffers)
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    places = [start + k for start, length in zip(starts, lengths) for k in range(length)]
    buffers.query_start_loc[: len(ends)] = torch.from_numpy(ends)
    buffers.query_start_loc[len(ends) :] = total
    buffers.positions[:total] = torch.tensor(places)
    made.req_ids, made.num_tokens, made.num_tokens_after_padding = list(names), total, total + padding
    made.positions = buffers.positions[: total + padding]
    made.query_start_loc = buffers.query_start_loc[: len(ends)]
    return made


def rows_of(steering, *names):
    return [steering.tokens._rows._row[steering._placed[name][0].row] for name in names]


def test_requests_in_any_order_padded_dummy_and_resumed(second):
    steering, state = second
    prepare = lambda made: state.prepare_inputs(made, None)  # noqa: E731
    state.add_request(0, new("a", params("calm +1", positions="generated"), 6))
    state.add_request(1, new("b", None, 4))
    state.add_request(2, new("c", params("angry +1"), 3))

    prepare(batch("abc", [0, 0, 0], [6, 4, 3]))  # prompts
    a, c = None, rows_of(steering, "c")[0]
    assert steering.tokens.value[:14].tolist() == [-1] * 10 + [c] * 3 + [-1]

    prepare(batch("cab", [3, 6, 4], [1, 3, 1], padding=11))  # another order; two drafts; padded for a graph
    a, c = rows_of(steering, "a", "c")
    assert a != c
    assert steering.tokens.value[:16].tolist() == [c, a, a, a, -1] + [-1] * 11

    from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers

    prepare(InputBatch.make_dummy(3, 9, InputBuffers(20, 200, CPU)))  # nobody's
    assert bool((steering.tokens.value == -1).all())

    # "a" is preempted after three tokens and comes back with them as part of what is to be computed again: its prompt
    # still has six.
    state.remove_request("a")
    state.add_request(0, new("a", params("calm +1", positions="generated"), 6, written=3))
    prepare(batch("a", [0], [9]))
    (a,) = rows_of(steering, "a")
    assert steering.tokens.value[:10].tolist() == [-1] * 6 + [a] * 3 + [-1]

    for name in "abc":
        state.remove_request(name)
    assert steering._placed == {}


def test_readings_follow_the_requests_of_a_pass(second):
    """Whatever their order, padded; they come with the output, also with one that is copied later."""
    from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

    steering, state = second
    reads = steering.reads
    state.add_request(0, new("a", params(read="calm", read_layers=15, read_unit="projection"), 6))
    state.add_request(1, new("b", params("calm +1"), 4))
    state.add_request(2, new("c", params(read="angry", read_layers=[5, 15], read_unit="projection"), 3))
    state.prepare_inputs(batch("cba", [3, 0, 6], [1, 4, 2], padding=5), None)
    assert reads.flags[:12].tolist() == [1, 0, 0, 0, 0, 1, 1] + [0] * 5
    for layer, values in reads.values.items():
        values.copy_(1000.0 * layer + torch.arange(200.0)[:, None] + torch.arange(values.shape[1]) / 100)
    concept = {name: steering.deployment.banks["random"].index(name) / 100 for name in ("calm", "angry")}
    output = ModelRunnerOutput(req_ids=["c", "b", "a"], req_id_to_index={"c": 0, "b": 1, "a": 2})

    class Later(AsyncModelRunnerOutput):
        def get_output(self):
            return output

    runner = SimpleNamespace(sample_tokens=lambda *_: Later())
    bring(runner, reads)
    found = runner.sample_tokens(None).get_output().emosteer_readings
    assert found.keys() == {"a", "c"}
    scale = steering.deployment.banks["random"].scale
    assert found["a"][0].tolist() == [6, 7]
    wanted = np.array([[15005.0], [15006.0]]) + concept["calm"]
    assert found["a"][1] == pytest.approx(wanted / scale[15])
    assert found["c"][0].tolist() == [3]
    wanted = (np.array([[5000.0, 15000.0]]) + concept["angry"]) / scale[15]
    assert found["c"][1] == pytest.approx(wanted)
    assert isinstance(runner.sample_tokens(None), Later)  # nothing is told twice


def test_a_request_among_others_that_was_never_added_ends_the_pass(second):
    _, state = second
    state.add_request(0, new("a", params("calm +1"), 6))
    with pytest.raises(KeyError):
        state.prepare_inputs(batch(["a", "stranger"], [0, 0], [6, 2]), None)


def test_another_build_is_refused_by_name(second):
    steering, _ = second
    steering.runner = SimpleNamespace(model_state=SimpleNamespace(add_request=None))
    with pytest.raises(RuntimeError, match="SimpleNamespace, which has no 'remove_request'"):
        runner_v2.PART.attach(steering)
