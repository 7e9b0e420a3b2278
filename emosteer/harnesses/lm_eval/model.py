"""The harness's model type "emosteer": a Hugging Face model whose steering is one table row, changed at will."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from emosteer.bank import Bank
from emosteer.models.loading import load
from emosteer.programs import Program
from emosteer.spelling import layers as layers_of
from emosteer.spelling import program_of
from emosteer.steering import steer

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise ImportError(
        f'lm-evaluation-harness is missing ({error}): pip install "emosteer[lm-eval]"'
    ) from None


@register_model("emosteer")
class SteeredLM(HFLM):
    """A steered model for lm-evaluation-harness.

    All of a request's tokens are steered, those of the context as those of the continuation. Requests
    reach the harness's own code unchanged: batches, caches and chat templates are as for its type "hf".

    Args:
        pretrained: a name for `es.load`, or a model; then `tokenizer` is its tokenizer.
        bank: a bank or the path of its file.
        steer: a program, or one as text: "calm +0.1; angry <= 0"; None for none.
        layers, relative, preserve_norm: of `es.steer`.
        slots: directions that a program may combine.
        device, dtype, revision: for `es.load`.
        kwargs: of the harness's `HFLM`: batch_size, max_length and so on.

    Raises:
        ValueError: names the argument.
    """

    def __init__(
        self,
        pretrained: Any = "smollm2",
        bank: Bank | str | os.PathLike[str] = "",
        steer: Program | str | None = None,
        *,
        layers: Any = "middle",
        relative: bool = False,
        preserve_norm: bool = True,
        slots: int = 4,
        device: str | None = "cpu",
        dtype: str | torch.dtype = "float32",
        revision: str | None = None,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(bank, Bank) and not str(bank):
            raise ValueError(
                "bank is missing; expected a bank or the path of its file (emosteer extract makes one)"
            )
        if isinstance(pretrained, (str, os.PathLike)):
            chosen = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype), None)
            if not isinstance(chosen, torch.dtype):
                raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
            pretrained, tokenizer = load(pretrained, dtype=chosen, device=device or "cpu", revision=revision)
        super().__init__(pretrained=pretrained, tokenizer=tokenizer, **kwargs)
        self.bank = bank if isinstance(bank, Bank) else Bank.load(bank)
        self._steering = _attached(self.model, self.bank, layers, relative, preserve_norm, slots)
        self.program = program_of(steer)

    @property
    def program(self) -> Program:
        """What the model is steered by; setting it changes a table row, nothing is loaded or patched anew."""
        return self._steering.programs[0]

    @program.setter
    def program(self, program: Program | None) -> None:
        self._steering.set(0, program)

    def close(self) -> None:
        """Restore the model."""
        self._steering.detach()

    def get_model_info(self) -> dict[str, Any]:
        """The harness's, and the steering."""
        return {
            **super().get_model_info(),
            "emosteer_program": str(self.program),
            "emosteer_layers": list(self._steering.layers),
        }


def _attached(model: Any, bank: Bank, layers: Any, relative: bool, preserve_norm: bool, slots: int) -> Any:
    # The harness's parser of --model_args makes numbers of digits; a list comes as "12+13".
    found = steer(
        model,
        bank,
        [None],
        layers=layers_of(layers),
        relative=relative,
        preserve_norm=preserve_norm,
        slots=slots,
    )
    found.attach()
    return found


def scored(metrics: Mapping[str, Any]) -> dict[tuple[str, str], tuple[float, float | None]]:
    """`(metric, filter)` → `(value, standard error)`, from the harness's results of one task."""
    found = {}
    for key, value in metrics.items():
        metric, comma, of = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            error = metrics.get(f"{metric}_stderr,{of}")
            found[metric, of] = (float(value), float(error) if isinstance(error, (int, float)) else None)
    return found
