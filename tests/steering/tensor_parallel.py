"""One of several processes that hold a model together: writes what it generates, steered, to a file.

torchrun --nproc-per-node 2 -m tests.steering.tensor_parallel FOLDER
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

import emosteer as es

PROGRAMS = [es.add("calm", 0.3), es.cap("angry", -0.1) + es.add("joyful", 0.2)]
IDS = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])
MASK = (IDS != 0).long()


def outcome(model, bank, fused):
    """Greedy text and last logits, steered and after it."""
    how = dict(max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0)
    inputs = dict(input_ids=IDS, attention_mask=MASK)
    with torch.no_grad():
        with es.steer(model, bank, PROGRAMS, layers="all", fused=fused) as steering:
            text, logits = model.generate(**inputs, **how), model(**inputs).logits
        found = {"text": text.tolist(), "logits": logits.tolist(), "report": steering.report()}
        return found | {"unsteered": model(**inputs).logits.tolist()}


def compiled_outcome(model, bank):
    """Last logits of the compiled model, traced before it is steered and run steered and after it."""
    run = torch.compile(model, backend="eager", dynamic=False)
    inputs = dict(input_ids=IDS, attention_mask=MASK, use_cache=False)
    with torch.no_grad():
        run(**inputs)
        with es.steer(model, bank, PROGRAMS, layers="all"):
            logits = run(**inputs).logits
        return {"logits": logits.tolist(), "unsteered": run(**inputs).logits.tolist()}


def main(folder):
    model = AutoModelForCausalLM.from_pretrained(folder / "model", tp_plan="auto").eval()
    bank = es.Bank.load(folder / "bank.safetensors")
    split = {p.to_local().shape != p.shape for p in model.parameters() if hasattr(p, "to_local")}
    found = {str(fused): outcome(model, bank, fused) for fused in (True, False)}
    found["compiled"] = compiled_outcome(model, bank)
    found["split"] = any(split)
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
