"""vLLM without banks: prompts from standard input, their greedy tokens to standard output."""

import json
import sys


def main():
    from vllm import LLM, SamplingParams
    from vllm.v1.engine.input_processor import InputProcessor

    from emosteer.models.loading import folder_of

    asked = json.load(sys.stdin)
    llm = LLM(folder_of("smollm2"), **asked["options"])
    runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
    params = SamplingParams(temperature=0.0, max_tokens=asked["length"], ignore_eos=True)
    prompts = [{"prompt_token_ids": prompt} for prompt in asked["prompts"]]
    tokens = [answer.outputs[0].token_ids for answer in llm.generate(prompts, params, use_tqdm=False)]
    untouched = {
        "plugin": hasattr(InputProcessor, "emosteer_patched"),
        "steering": hasattr(runner, "emosteer"),
        "own": sorted(set(vars(runner)) & {"load_model", "_prepare_inputs", "_dummy_run"}),
        "forwards": sum("forward" in vars(module) for module in runner.model.modules()),
        "buffers": sum("emosteer" in name for name, _ in runner.model.named_buffers()),
    }
    print(json.dumps({"tokens": [list(one) for one in tokens], "untouched": untouched}))


if __name__ == "__main__":
    main()
