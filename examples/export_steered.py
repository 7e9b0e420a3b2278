"""A steered model as one file that runs without emosteer: `python examples/export_steered.py --out out/steered`.

Exports the built-in model, steered in its middle blocks, with the table of programs among the inputs:
`steered.pt2`, and one `<name>.table.pt` for each program. Then runs them in a Python that never imports emosteer.
With `--aoti` it also compiles the model ahead of time, for `torch._inductor.aoti_load_package` or C++.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

import emosteer as es

RUN = """
import sys, torch
path, *tables = sys.argv[1:]
program = torch.export.load(path + "/steered.pt2").module()
inputs = torch.load(path + "/inputs.pt", weights_only=True)
for table in tables:
    logits = program(torch.load(f"{path}/{table}.table.pt", weights_only=True), **inputs)
    print(table, logits[0, -1].topk(3).indices.tolist())
assert "emosteer" not in sys.modules
"""


def export(steering, inputs: dict[str, torch.Tensor], programs: dict[str, object], folder: Path) -> Path:
    """Write the model with its inputs, and a table for each program; returns the model's file."""
    folder.mkdir(parents=True, exist_ok=True)
    module = es.exportable(steering)
    with torch.no_grad():
        exported = torch.export.export(module, (module.table,), inputs, strict=False)
    torch.export.save(exported, folder / "steered.pt2")
    torch.save(inputs, folder / "inputs.pt")
    for name, program in programs.items():
        steering.set(0, program)
        torch.save(module.table, folder / f"{name}.table.pt")
    return folder / "steered.pt2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/steered"))
    parser.add_argument("--text", default="When I got home this evening, I felt")
    parser.add_argument("--aoti", action="store_true", help="compile ahead of time too")
    options = parser.parse_args()
    model, tokenizer = es.load("smollm2")
    bank = es.emotions.bank(model, tokenizer)
    text = dict(tokenizer([options.text], return_tensors="pt"))
    programs = {"unsteered": None, "joyful": es.add("joyful", 0.05), "desperate": es.add("desperate", 0.05)}
    with es.steer(model, bank, None) as steering:
        path = export(steering, text, programs, options.out)
        if options.aoti:
            exported = torch.export.load(path)
            target = str(options.out / "steered.aoti.pt2")
            print(torch._inductor.aoti_compile_and_package(exported, package_path=target))
    subprocess.run([sys.executable, "-c", RUN, str(options.out), *programs], check=True)


if __name__ == "__main__":
    main()
