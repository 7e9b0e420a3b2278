"""Scores of the harness's tasks under several programs, with one model loaded once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emosteer.programs import Program
from emosteer.sweep.plan import UNSTEERED, Arm

from .model import SteeredLM, scored


@dataclass(frozen=True)
class Score:
    """One score of one task under one program.

    Attributes:
        control: "unsteered", "random" or "".
        strength: NaN of a program that does not push along one direction.
        filter: of the harness.
        standard_error: as the harness says it; None where it does not.
    """

    task: str
    metric: str
    filter: str
    control: str
    concept: str
    strength: float
    program: str
    value: float
    standard_error: float | None

    def record(self) -> dict[str, Any]:
        """As a mapping."""
        return asdict(self)


def evaluate(
    lm: SteeredLM, tasks: Sequence[Any], programs: Iterable[Program | Arm], **options: Any
) -> list[Score]:
    """Scores of tasks, unsteered first, then under each program; the model is steered as before at the end.

    Args:
        lm: the model.
        tasks: names or tasks of the harness.
        programs: programs, or arms of a sweep (`emosteer.sweep.plan`).
        options: of the harness's `simple_evaluate`: num_fewshot, limit, task_manager, gen_kwargs, ….

    Raises:
        ValueError: no task.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    if not len(tasks):
        raise ValueError("tasks is empty; give at least one of the harness's tasks")
    # Made once, as the harness makes it for each call: it reads thousands of files.
    if options.get("task_manager") is None:
        options["task_manager"] = TaskManager(metadata=options.get("metadata") or {})
    arms = [one if isinstance(one, Arm) else _arm(one) for one in programs]
    if not any(arm.control == UNSTEERED for arm in arms):
        arms.insert(0, Arm(Program(), UNSTEERED, 0.0, UNSTEERED))
    before, found = lm.program, []
    try:
        for arm in arms:
            lm.program = arm.program
            results = simple_evaluate(model=lm, tasks=list(tasks), log_samples=False, **options)["results"]
            for task, metrics in results.items():
                found += [
                    Score(
                        task,
                        metric,
                        of,
                        arm.control,
                        arm.concept,
                        arm.strength,
                        str(arm.program),
                        value,
                        error,
                    )
                    for (metric, of), (value, error) in scored(metrics).items()
                ]
    finally:
        lm.program = before
    return found


def _arm(program: Program) -> Arm:
    if len(program.slots) == 1 and program.slots[0].strength:
        return Arm(program, program.names[0], program.slots[0].strength)
    return Arm(program, "+".join(program.names), float("nan"))


def grid(scores: Sequence[Score]) -> tuple[list[str], list[list[str]]]:
    """`(head, rows)` of a table: a row a task, metric and concept, a column a strength.

    Programs without one strength have a row of their own, with the score in the last column.
    """
    strengths = sorted(
        {s.strength for s in scores if s.strength == s.strength and s.control != UNSTEERED} | {0.0}
    )
    others = any(s.strength != s.strength for s in scores)
    head = ["task", "metric", "concept", *(f"{strength:g}" for strength in strengths)]
    head += ["program"] if others else []
    rows: dict[tuple[str, str, str], list[str]] = {}
    plain = {(s.task, s.metric, s.filter): s for s in scores if s.control == UNSTEERED}
    for score in scores:
        if score.control == UNSTEERED and len(plain) < len(scores):
            continue
        metric = score.metric if score.filter == "none" else f"{score.metric} ({score.filter})"
        pushed = score.strength == score.strength
        name = score.concept if pushed else score.program
        row = rows.setdefault((score.task, metric, name), [""] * (len(strengths) + others))
        if pushed:
            row[strengths.index(0.0)] = _said(plain[score.task, score.metric, score.filter])
            row[strengths.index(score.strength)] = _said(score)
        else:
            row[-1] = _said(score)
    return head, [[*key, *cells] for key, cells in rows.items()]


def _said(score: Score) -> str:
    error = "" if score.standard_error is None else f" ± {score.standard_error:.2g}"
    return f"{score.value:.4g}{error}"
