"""What a folder says of its sweep, and the arguments read from it again."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from emosteer.bank import Bank
from emosteer.models.capture import name_of
from emosteer.programs import Program

from ..metrics import Metric
from ..plan import Plan
from ..plan.generation import Generation
from ..store import Store
from .definition import Definition
from .entries import program_definition
from .yaml_file import keywords

VERSIONS = ("emosteer", "torch", "transformers", "numpy", "pyarrow")


def manifest_of(sweep: Definition, plan: Plan, metrics: Sequence[Metric], units: int) -> dict[str, Any]:
    """What the folder says of its sweep."""
    name, revision = name_of(sweep.model)
    return {
        "definition": definition_of(sweep),
        "model": {"name": name, "revision": revision, "id": plan.model_id},
        "units": units,
        "axes": plan.axes(),
        "metrics": {
            m.id(sweep.generation): {"name": m.name, "kind": m.kind, **m.definition()} for m in metrics
        },
        "versions": _versions(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def definition_of(sweep: Definition) -> dict[str, Any]:
    """The sweep as a YAML file would say it; what it could not say is under `python`."""
    found: dict[str, Any] = {
        "model": sweep.name,
        "revision": sweep.revision,
        "dtype": str(sweep.dtype).removeprefix("torch.") if sweep.dtype is not None else None,
        "device": sweep.device,
        "prompts": sweep.prompts,
        "strengths": list(sweep.strengths) or None,
        "layers": [list(one) if isinstance(one, (tuple, range)) else one for one in sweep.layers],
        "positions": list(sweep.position_labels),
        "seeds": list(sweep.seeds),
        "generation": {k: getattr(sweep.generation, k) for k in Generation.__dataclass_fields__},
        "controls": list(sweep.controls),
        "random_directions": sweep.random_directions,
        "control_seed": sweep.control_seed,
        "exclude": [dict(rule) for rule in sweep.exclude] or None,
        "relative": sweep.relative,
        "batch_tokens": sweep.batch_tokens,
        "batch_rows": sweep.batch_rows,
    }
    python: list[str] = []
    if found["model"] is None:
        python.append("model: given as an object")
    if sweep.where is not None:
        python.append("where: a function")
    given = sweep.programs
    if given is not None and given != "all":
        given = [given] if isinstance(given, (str, Program)) else given
        try:
            found["programs"] = [p if isinstance(p, str) else program_definition(p) for p in given]
        except ValueError as error:
            python.append(f"programs: {error}")
    found["metrics"] = []
    for metric in sweep.metrics:
        definition = metric.definition()
        if metric.kind == "judge":
            if definition["function"] is None:
                python.append(f"metrics: the judge {metric.name!r} is a function of a program")
            definition = {"function": definition["function"]}
        if metric.kind == "readings" and definition.pop("directions", None):
            python.append(f"metrics: {metric.name!r} reads on another bank")
        found["metrics"].append({metric.kind: {**definition, "name": metric.name}})
    found = {key: value for key, value in found.items() if value is not None}
    return {**found, "python": python} if python else found


def keywords_of(store: Store, folder: str | os.PathLike[str], *, with_model: bool) -> dict[str, Any]:
    """The arguments of the sweep that a folder's manifest defines.

    Args:
        store: of the folder.
        folder: as the user calls it.
        with_model: whether the user gives the model as an object, and its tokenizer.

    Raises:
        FileNotFoundError: no folder of a sweep.
        ValueError: the sweep has parts that only the program which made it can give.
    """
    definition = dict(store.manifest()["definition"])
    missing = [why for why in definition.pop("python", []) if not (with_model and why.startswith("model:"))]
    if missing:
        raise ValueError(
            f"{store} cannot be resumed from its manifest alone ({'; '.join(missing)}); "
            f"run the same es.Sweep(…).run({str(folder)!r}) again, it goes on from there"
        )
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "bank.safetensors"
        path.write_bytes(store.read_bank())
        found = keywords({**definition, "bank": str(path)}, Path.cwd())
        found["bank"] = Bank.load(path)
    return found


def bank_bytes(bank: Bank) -> bytes:
    """The file that `Bank.save` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bank.safetensors"
        bank.save(path)
        return path.read_bytes()


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
