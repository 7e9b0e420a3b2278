"""Small changes of the code, one at a time, each of which the tests should see: `make mutation`.

cosmic-ray makes the mutants: another operator, number, comparison or condition at one place of a file. A sample of
them, the same for the same seed, is tried in copies of the checkout: of each file a share of its places is drawn, and
of each place one mutant. What changes annotations alone is none, for nothing runs them. Each trial is a fork of a
process that has imported torch already; it runs the tests of the file until one fails. Results stand in a table as
they come, so that a run that was cut off goes on where it was.
"""

from __future__ import annotations

import argparse
import ast
import csv
import difflib
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path

from .planted import ROOT, copy

_STEERING = tuple(
    f"tests/steering/test_{name}.py"
    for name in ("errors", "programs", "table_rows", "restore", "wrapped", "generate")
)
_KERNELS = tuple(f"tests/ops/test_{name}.py" for name in ("norm", "steer", "project", "moments"))


def _ops(*names: str, backend: str = "not triton and not cuda") -> tuple[str, ...]:
    return "-k", backend, *(f"tests/ops/test_{name}.py" for name in names), *_KERNELS


# What is mutated, and the tests that must see it: the quickest first, those of its own before others'.
TESTS: dict[str, tuple[str, ...]] = {
    "emosteer/bank.py": ("tests/test_bank.py", "tests/formats/test_round_trips.py"),
    "emosteer/directions.py": ("tests/test_directions.py",),
    "emosteer/programs.py": ("tests/test_spelling.py", *_STEERING),
    "emosteer/steering.py": (*_STEERING, "tests/steering/test_calibration.py", "tests/steering/test_rows.py"),
    "emosteer/ops/backends.py": _ops("errors", "gpu_rule"),
    "emosteer/ops/checks.py": _ops("errors", "interchange"),
    "emosteer/ops/cpu/binding.py": _ops("errors"),
    "emosteer/ops/cpu/moments.py": _ops("errors"),
    "emosteer/ops/cpu/projection.py": _ops("errors"),
    "emosteer/ops/cpu/repeated.py": _ops("errors"),
    "emosteer/ops/cpu/steering.py": _ops("errors"),
    "emosteer/ops/cuda.py": _ops("cuda_host", backend="cuda"),
    "emosteer/ops/cuda_resources.py": ("tests/ops/test_cuda_machine_code.py",),
    "emosteer/ops/extremes.py": _ops("extremes"),
    "emosteer/ops/formula.py": _ops("formula"),
    "emosteer/ops/gpu.py": _ops("gpu_rule"),
    "emosteer/ops/interchange.py": _ops("interchange"),
    "emosteer/ops/moment_tensors.py": ("-k", "not triton and not cuda", "tests/ops/test_moments.py"),
    "emosteer/ops/precision.py": _ops("precision"),
    "emosteer/ops/public.py": _ops("errors", "registration"),
    "emosteer/ops/reference.py": _ops("errors"),
    "emosteer/ops/registration.py": _ops("registration"),
    "emosteer/ops/sites.py": ("tests/ops/test_sites.py",),
    "emosteer/ops/strides.py": _ops("cuda_host", backend="not triton"),
    "emosteer/ops/table.py": _ops("table", "errors"),
    "emosteer/ops/triton.py": _ops("triton_backend", backend="triton"),
}
# Trials longer than so many times the tests of sound code count as seen: a loop that does not end.
PATIENCE = 4.0


@dataclass(frozen=True)
class Mutant:
    """A file with one place changed."""

    file: str
    line: int
    was: str
    now: str
    code: str

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.file}\n{self.code}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Trial:
    """What came of a mutant: `seen` by a failing test, by `time` (it did not end), or `missed`."""

    file: str
    line: int
    was: str
    now: str
    outcome: str
    by: str
    key: str


class _Unannotated(ast.NodeTransformer):
    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)


@lru_cache(maxsize=1000)
def _runs(code: str) -> str | None:
    """What of a file is run: its tree without annotations. None where it is no Python: a lone `*` changed, say."""
    try:
        return ast.dump(_Unannotated().visit(ast.parse(code)))
    except SyntaxError:
        return None


def places(file: str) -> dict[tuple[int, int], list[tuple[str, int]]]:
    """Where in a file an operator of cosmic-ray changes something, line and column: its name, and which change."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    nodes = list(ast_nodes(get_ast((ROOT / file).read_text())))
    found: dict[tuple[int, int], list[tuple[str, int]]] = defaultdict(list)
    for name in sorted(operator_names()):
        operator = get_operator(name)
        if not operator.arguments():  # else it has to be told what to change
            changes = (place for node in nodes for place in operator().mutation_positions(node))
            for occurrence, (start, _) in enumerate(changes):
                found[start].append((name, occurrence))
    return found


def mutant(file: str, name: str, occurrence: int) -> Mutant | None:
    """One change; None where what is run stays the same, or is no Python."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    sound = (ROOT / file).read_text()
    code = mutate_code(sound, get_operator(name)(), occurrence)
    if code is None or _runs(code) in (_runs(sound), None):
        return None
    lines, changed = sound.splitlines(), code.splitlines()
    matched = difflib.SequenceMatcher(None, lines, changed, autojunk=False).get_opcodes()
    _, start, stop, first, last = next(one for one in matched if one[0] != "equal")
    was, now = (" ".join(map(str.strip, part)) for part in (lines[start:stop], changed[first:last]))
    return Mutant(file, start + 1, was, now, code)


def drawn(share: float, seed: int, files: Sequence[str]) -> list[Mutant]:
    """The sample: of each file a share of its places, at least four, and of each one mutant."""
    wanted = []
    for file in files:
        chance, of = random.Random(f"{seed} {file}"), places(file)
        for place in chance.sample(sorted(of), min(len(of), max(4, round(share * len(of))))):
            changes = chance.sample(of[place], len(of[place]))
            wanted.append(next((one for change in changes if (one := mutant(file, *change))), None))
    chosen = [one for one in wanted if one is not None]
    random.Random(seed).shuffle(chosen)
    together = list(dict.fromkeys(TESTS.values()))  # mutants of the same tests follow each other
    return sorted(chosen, key=lambda one: together.index(TESTS[one.file]))


def _begin(folder: Path, tests: Sequence[str], log: Path, write: bool) -> int:
    """A fork that runs tests in a copy of the checkout; its process."""
    if pid := os.fork():
        return pid
    code = 3
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(folder)
        os.environ["PYTHONPATH"] = sys.path[0] = str(folder)
        sys.dont_write_bytecode = not write
        for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "emosteer")]:
            del sys.modules[name]
        import pytest

        options = [
            "-x",
            "-q",
            "--tb=line",
            "-p",
            "no:cacheprovider",
            "-m",
            "not gpu and not install and not model",
        ]
        code = int(pytest.main([*options, *tests]))
    finally:
        sys.stdout.flush()
        os._exit(code)


def _finished(pid: int, until: float) -> int | None:
    """The exit status of a process; None while it runs; −1 where its time was up."""
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        return os.waitstatus_to_exitcode(status)
    if time.monotonic() < until:
        return None
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -1


def _sound(folder: Path, tests: Sequence[str]) -> float:
    """Seconds that the tests take of sound code, on which they pass."""
    log, began = folder / "trial.log", time.monotonic()
    pid = _begin(folder, tests, log, write=True)  # bytecode, for all that follow
    while (code := _finished(pid, began + 3600)) is None:
        time.sleep(0.05)
    if code:
        sys.exit(f"the tests fail on sound code: {' '.join(tests)}\n{log.read_text()[-3000:]}")
    return time.monotonic() - began


def tried(mutants: Sequence[Mutant], folders: Sequence[Path], deadline: float) -> Iterator[Trial]:
    """Each mutant's trial, as many at once as there are folders; none is begun after the deadline."""
    waiting, free, running = list(mutants)[::-1], list(folders), {}
    patience: dict[tuple[str, ...], float] = {}
    while running or (waiting and time.monotonic() < deadline):
        while free and waiting and time.monotonic() < deadline:
            one, folder = waiting.pop(), free.pop()
            tests, file = TESTS[one.file], folder / one.file
            if tests not in patience:
                patience[tests] = PATIENCE * _sound(folder, tests) + 10
            sound = file.read_text()
            file.write_text(one.code)
            for cached in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
                cached.unlink()
            pid = _begin(folder, tests, folder / "trial.log", write=False)
            running[pid] = one, folder, sound, time.monotonic() + patience[tests]
        time.sleep(0.02)
        for pid, (one, folder, sound, until) in list(running.items()):
            code = _finished(pid, until)
            if code is None:
                continue
            del running[pid]
            (folder / one.file).write_text(sound)
            free.append(folder)
            said = (folder / "trial.log").read_text(errors="replace").splitlines()
            by = next((l.split(" - ")[0].split()[1] for l in said if l.startswith(("FAILED", "ERROR "))), "")
            outcome = {0: "missed", -1: "time"}.get(code, "seen")
            yield Trial(one.file, one.line, one.was, one.now, outcome, by, one.key)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=0.08, help="of the places of each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", nargs="*", default=sorted(TESTS), help="of these alone")
    parser.add_argument("--again", action="store_true", help="those missed before once more")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no trial after so many")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/mutants.csv"))
    asked = parser.parse_args()
    known = {}
    if asked.out.exists():
        with asked.out.open(newline="") as file:
            rows = csv.DictReader(line for line in file if not line.startswith("#"))
            known = {row["key"]: Trial(**row) for row in rows}
    if asked.again:
        known = {key: trial for key, trial in known.items() if trial.outcome != "missed"}
    if unknown := set(asked.files) - set(TESTS):
        parser.error(
            f"--files: no tests are named for {', '.join(sorted(unknown))}; known are {', '.join(TESTS)}"
        )
    sample = drawn(asked.share, asked.seed, asked.files)
    left = [one for one in sample if one.key not in known]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import hypothesis  # noqa: F401  what every trial would import again
    import pytest  # noqa: F401
    import torch  # noqa: F401
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    asked.out.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + asked.seconds
    with tempfile.TemporaryDirectory() as room:
        folders = [Path(room, str(j)) for j in range(asked.jobs)]
        copy(folders[0])
        for folder in folders[1:]:
            shutil.copytree(folders[0], folder, symlinks=True)
        for trial in tried(left, folders, deadline):
            known[trial.key] = trial
            print(f"{trial.outcome:6} {trial.file}:{trial.line}: {trial.was}  →  {trial.now}", flush=True)
            _write(asked.out, list(known.values()))
    report(list(known.values()), sum(one.key not in known for one in sample))


def _write(out: Path, trials: Sequence[Trial]) -> None:
    part = out.with_suffix(".part")
    with part.open("w", newline="") as file:
        file.write("# python -m tests.mutants: small changes of the code, and whether the tests see them\n")
        writer = csv.DictWriter(file, [field.name for field in fields(Trial)])
        writer.writeheader()
        writer.writerows(
            asdict(trial) for trial in sorted(trials, key=lambda t: (t.file, int(t.line), t.key))
        )
    part.replace(out)


def report(trials: Sequence[Trial], untried: int) -> None:
    """By file and in all: mutants tried and seen."""
    by_file = defaultdict(list)
    for trial in trials:
        by_file[trial.file].append(trial.outcome != "missed")
    for file, seen in sorted(by_file.items()):
        print(f"{sum(seen):4} of {len(seen):3}  {file}")
    seen = [trial.outcome != "missed" for trial in trials]
    print(f"{sum(seen)} of {len(seen)} mutants seen ({sum(seen) / max(len(seen), 1):.1%}); {untried} untried")


if __name__ == "__main__":
    main()
