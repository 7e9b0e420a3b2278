"""An engine in a process of its own: what is asked from standard input, its greedy tokens to standard output."""

import json
import sys


def answered(asked):
    """What an engine that is started for it answers."""
    from vllm import LLM, SamplingParams
    from vllm.v1.engine.input_processor import InputProcessor

    llm = LLM(**asked["options"])
    lora = None
    if "adapters" in asked:  # of each request: a name and a folder, or None
        from vllm.lora.request import LoRARequest

        names = sorted({one[0] for one in asked["adapters"] if one})
        lora = [one and LoRARequest(one[0], 1 + names.index(one[0]), one[1]) for one in asked["adapters"]]
    params = [
        SamplingParams(
            temperature=0.0, max_tokens=asked["length"], ignore_eos=True, detokenize=False, extra_args=one
        )
        for one in asked["args"]
    ]
    prompts = [{"prompt_token_ids": prompt} for prompt in asked["prompts"]]
    tokens = [
        answer.outputs[0].token_ids
        for answer in llm.generate(prompts, params, use_tqdm=False, lora_request=lora)
    ]
    found = {"tokens": [list(one) for one in tokens]}
    metrics = {m.name: m.value for m in llm.get_metrics() if hasattr(m, "value")}
    found["accepted"] = metrics.get("vllm:spec_decode_num_accepted_tokens", 0)
    executor = getattr(llm.llm_engine, "model_executor", None)
    if executor is not None:  # in this process
        runner = executor.driver_worker.worker.model_runner
        found["untouched"] = {
            "plugin": hasattr(InputProcessor, "emosteer_patched"),
            "steering": hasattr(runner, "emosteer"),
            "own": sorted(set(vars(runner)) & {"load_model", "_prepare_inputs", "_dummy_run"}),
            "forwards": sum("forward" in vars(module) for module in runner.model.modules()),
            "buffers": sum("emosteer" in name for name, _ in runner.model.named_buffers()),
        }
    llm.llm_engine.engine_core.shutdown()
    return found


if __name__ == "__main__":
    print(json.dumps(answered(json.load(sys.stdin))))
