"""Programs → a patched model: every row of a batch steered by its own program, at every chosen block."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .bank import Bank
from .models.blocks import Decoder, check_layers, find_decoder, resolve_layers
from .models.injection import Injection
from .models.patching import unwrap
from .models.positions import Positions
from .models.prompts import Prompt
from .models.table_rows import TableRows
from .ops import SteerTable
from .programs import Program, add

# Slots a row of the table has at least, so that a later `set` may combine a few programs.
MIN_SLOTS = 4

ProgramLike = str | Program | None

# Where a bank's provenance keeps what `es.calibrate` found: concept → layers → strongest coherent strength.
CALIBRATION = "calibration"


def calibration_key(layers: Sequence[int]) -> str:
    """How a set of layers is written there."""
    return ",".join(map(str, layers))


def steer(
    model: nn.Module,
    bank: Bank,
    programs: ProgramLike | Sequence[ProgramLike],
    strength: float | str | Sequence[float | None] | None = None,
    *,
    layers: Any = "middle",
    positions: Any = "all",
    preserve_norm: bool = True,
    relative: bool = False,
    scale: float | Mapping[int, float] | None = None,
    slots: int = MIN_SLOTS,
    fused: bool = True,
    strict: bool = False,
) -> Steering:
    """Steer a model: `with es.steer(model, bank, "calm", 0.1): model.generate(...)`.

    At each chosen block `l` the residual stream after it becomes, for a token whose row has the
    program with slots `j` (see `emosteer.ops.SteerTable`),

        y = x + Σ_j δ_j v_j,   δ_j = strength_j·u + clip(p_j, low_j·u, high_j·u) − p_j,   p_j = <x, v_j>

    and then, as the program says, is brought back to the norm of `x`. A unit `u` is the block's mean
    residual norm (`bank.scale[l]`), so a strength is a fraction of it (Sofroniew et al., 2026).

    Args:
        model: any Hugging Face decoder (compiled, PEFT-wrapped or not).
        bank: the directions.
        programs: a name with `strength`, a program (`es.add("calm", 0.1) + es.cap("angry", 0.0)`), None for
            unsteered; or a sequence of them, one a row of the batch. A batch grown to k times as many rows
            (beams, several returned sequences) keeps each row's program.
        strength: for names: one number, or one a program; "auto": the strongest that `es.calibrate` found
            coherent for these layers, which the bank remembers.
        layers: "middle" (blocks from 40% to 70% of the depth), "all", numbers, fractions, several. The
            strength applies at each of them.
        positions: "all", "prompt", "generated", a slice or a bool mask (`emosteer.models.positions.Positions`).
            The first generated token is drawn from the prompt's last position, so "generated" leaves it
            alone; `slice(-1, None)` steers from that position on, every generated token included.
        preserve_norm: keep each row's norm where a program does not say; programs with bounds keep it by
            rescaling only what is orthogonal to their directions.
        relative: measure strengths and bounds by each token's own norm instead.
        scale: one unit of length, or one a block, instead of the bank's.
        slots: slots of a row: how many directions a program may combine.
        fused: steer inside the norm that reads the block's output, where that is proved to be the same.
        strict: raise instead of warn where the bank was made from another model.

    Returns:
        a handle to use in `with`; `handle.set(row, program)` changes a program between steps.

    Raises:
        TypeError, ValueError: before anything is patched; the message names the argument.
    """
    return Steering(
        model,
        bank,
        programs,
        strength,
        layers=layers,
        positions=positions,
        preserve_norm=preserve_norm,
        relative=relative,
        scale=scale,
        slots=slots,
        fused=fused,
        strict=strict,
    )


class Steering:
    """A model steered by programs; made by `steer`.

    Patched on entering `with` (or `attach`), restored on leaving it (`detach`).
    """

    def __init__(
        self,
        model: nn.Module,
        bank: Bank,
        programs: Any,
        strength: Any,
        *,
        layers: Any,
        positions: Any,
        preserve_norm: bool,
        relative: bool,
        scale: Any,
        slots: int,
        fused: bool,
        strict: bool,
    ) -> None:
        if not isinstance(bank, Bank):
            raise TypeError(f"bank must be an emosteer Bank, got {type(bank).__name__}")
        self.model = unwrap(model)
        self.bank = bank
        self._decoder = find_decoder(self.model)
        _check_origin(self.model, self._decoder, bank, strict)
        self.layers = _layers(layers, self._decoder.depth, bank)
        rows = _programs(programs, self._resolved(programs, strength))
        several = strength is not None and not isinstance(strength, (int, float, str))
        self._strengths = list(strength) if several else [strength] * len(rows)
        self._positions = Positions(positions, len(rows))
        self._rows = TableRows(
            bank.index,
            len(rows),
            max([slots, 1, *(len(p.slots) for p in rows)]),
            device=_device(self._decoder),
            preserve_norm=preserve_norm,
            relative=relative,
        )
        self._rows.write(range(len(rows)), rows)
        self._injection = Injection(
            model if hasattr(model, "generate") else self.model,
            self.model,
            self._decoder,
            {layer: bank.on(_device_of(self._decoder.blocks[layer]), layer) for layer in self.layers},
            _scales(self.layers, bank, scale, relative),
            self._rows.table,
            self._positions,
            rows=self._rows,
            fused=fused,
        )

    @property
    def table(self):
        """The `SteerTable` that the kernels read."""
        return self._rows.table

    @property
    def records(self) -> Tensor:
        """int32 `[at least R, W]`: the memory of the table, idle rows included (`SteerTable.record`)."""
        record = self._rows.whole.record
        assert record is not None  # the table is made by `empty`
        return record

    @property
    def attached(self) -> bool:
        """Whether the model is patched."""
        return self._injection.attached

    @contextmanager
    def reading(self, table: SteerTable) -> Iterator[None]:
        """Inside, traced passes read another table of the same slots: one that is an input of what is traced."""
        with self._injection.reading(table):
            yield

    @property
    def programs(self) -> tuple[Program, ...]:
        """The program of each row."""
        return self._rows.programs

    def set(self, row: int, program: ProgramLike, strength: float | str | None = None) -> None:
        """Give one row another program, from the next forward pass on; nothing is recompiled or captured again.

        A name without a strength takes the one that the row was given at the start.
        """
        if (
            strength is None
            and isinstance(program, str)
            and -len(self._strengths) <= row < len(self._strengths)
        ):
            strength = self._strengths[row]
        (one,) = _programs(program, self._resolved(program, strength))
        self._rows.write((row,), (one,))

    def set_all(self, programs: Sequence[ProgramLike], strength: Any = None) -> None:
        """Give every row another program; names without a strength take those given at the start."""
        programs = list(programs)
        if strength is None and len(programs) == len(self._strengths):
            kept = [self._resolved(p, s) for p, s in zip(programs, self._strengths) if isinstance(p, str)]
            each = iter(kept)
            strength = [_one(next(each)) if isinstance(p, str) else None for p in programs]
        rows = _programs(programs, self._resolved(programs, strength))
        if len(rows) != self._rows.table.rows:
            raise ValueError(f"programs has {len(rows)} entries, expected {self._rows.table.rows}, one a row")
        self._rows.write(range(len(rows)), rows)

    def _resolved(self, programs: Any, strength: Any) -> Any:
        """The strengths that "auto" stands for: those calibrated for these layers."""
        if not isinstance(strength, str):
            return strength
        if strength != "auto":
            raise ValueError(f'strength must be a number or "auto", got {strength!r}')
        programs = [programs] if programs is None or isinstance(programs, (str, Program)) else list(programs)
        return [_calibrated(self.bank, p, self.layers) if isinstance(p, str) else None for p in programs]

    @contextmanager
    def batch(
        self, rows: Sequence[int] | Tensor | None = None, prompt_mask: Tensor | None = None
    ) -> Iterator[None]:
        """Say what the passes inside are about, for decoding loops of one's own.

        `with steering.batch([4, 0, 2]): model(...)` runs three rows under the programs 4, 0 and 2 of
        the table. It holds for the calling thread, in eager and compiled code.

        Args:
            rows: `[B]`, the program of each row of the batch; −1 for unsteered. None: spread evenly.
            prompt_mask: bool `[B, P]`, the prompts' tokens, where positions count from their end; pass
                a 2-D attention mask to the model as well.

        Raises:
            ValueError: a row that the table does not have.
        """
        assigned = None
        if rows is not None:
            assigned = torch.as_tensor(rows, dtype=torch.int32)
            count = self._rows.table.rows
            bad = [r for r in assigned.tolist() if not -1 <= r < count]
            if bad:
                raise ValueError(
                    f"rows names row {bad[0]}; the table has rows 0 to {count - 1}, and -1 for none"
                )
        prompt = None if prompt_mask is None else Prompt(prompt_mask != 0)
        with self._injection.batch(assigned, prompt):
            yield

    def attach(self) -> Steering:
        """Patch the model."""
        self._injection.attach()
        return self

    def detach(self) -> None:
        """Restore the model: the same objects as before, nothing left over."""
        self._injection.detach()

    def __enter__(self) -> Steering:
        return self.attach()

    def __exit__(self, *_error) -> None:
        self.detach()

    def report(self) -> str:
        """Which blocks are steered inside the next norm, which at their output, and why."""
        return self._injection.report()

    def __repr__(self) -> str:
        state = "attached" if self._injection.attached else "detached"
        what = f"{len(self.programs)} programs, layers {list(self.layers)}, {state}"
        return f"Steering({type(self.model).__name__}, {what})"


def _programs(programs: Any, strength: Any) -> tuple[Program, ...]:
    if programs is None or isinstance(programs, (str, Program)):
        programs = [programs]
    if not isinstance(programs, Iterable) or isinstance(programs, Mapping):
        raise TypeError(
            f"programs must be a name, a program, None or a sequence of them, got {type(programs).__name__}"
        )
    programs = list(programs)
    if not programs:
        raise ValueError("programs is empty; give one program, or one for each row of the batch")
    if strength is None or isinstance(strength, (int, float)):
        strength = [strength] * len(programs)
    strength = list(strength)
    if len(strength) != len(programs):
        raise ValueError(f"strength has {len(strength)} entries, expected {len(programs)}, one a program")
    return tuple(_program(p, s) for p, s in zip(programs, strength))


def _one(strength: Any) -> Any:
    """The strength of one program, which `_resolved` may give as a list of one."""
    return strength[0] if isinstance(strength, list) else strength


def _program(program: ProgramLike, strength: float | None) -> Program:
    if program is None:
        return Program()
    if isinstance(program, Program):
        return program
    if isinstance(program, str):
        if strength is None:
            raise ValueError(
                f"program {program!r} is a name and needs a strength, e.g. es.steer(model, bank, {program!r}, 0.1)"
            )
        return add(program, strength)
    raise TypeError(f"a program must be a name, a program or None, got {type(program).__name__}")


def _calibrated(bank: Bank, name: str, layers: Sequence[int]) -> float:
    bank.index(name)
    found = bank.provenance.get(CALIBRATION, {}).get(name, {})
    key = calibration_key(layers)
    if key not in found:
        raise ValueError(
            f'strength "auto": {name!r} has not been calibrated for layers {list(layers)}; '
            f"run es.calibrate(model, tok, bank, {name!r}, layers={list(layers)}) first, or give a number"
        )
    if found[key] is None:
        raise ValueError(
            f'strength "auto": no strength tried for {name!r} at layers {list(layers)} left the text coherent; '
            f"calibrate smaller strengths, or give a number"
        )
    return found[key]


def _layers(layers: Any, depth: int, bank: Bank) -> tuple[int, ...]:
    wanted = resolve_layers(layers, depth)
    missing = [layer for layer in wanted if layer not in bank.layers]
    if missing and (not isinstance(layers, str) or len(missing) == len(wanted)):
        raise ValueError(
            f"layers {missing} are not in the bank, which has directions for layers {list(bank.layers)}; "
            f"pass layers=… or extract them"
        )
    return tuple(layer for layer in wanted if layer in bank.layers)


def _scales(layers: Sequence[int], bank: Bank, scale: Any, relative: bool) -> dict[int, float]:
    if relative and scale is None:
        return dict.fromkeys(layers, 1.0)
    if isinstance(scale, Mapping):
        missing = [layer for layer in layers if layer not in scale]
        if missing:
            raise ValueError(f"scale has no entry for the layers {missing}")
        found = {layer: float(scale[layer]) for layer in layers}
    elif scale is not None:
        found = dict.fromkeys(layers, float(scale))
    elif not bank.scale:
        raise ValueError(
            "the bank has no scale (mean residual norms), so strengths have no unit; "
            "pass relative=True (fractions of each token's own norm) or scale=1.0 (absolute units)"
        )
    else:
        found = {layer: float(bank.scale[layer]) for layer in layers}
    for layer, value in found.items():
        if not (value > 0 and value - value == 0):
            raise ValueError(f"the scale of layer {layer} must be a positive number, got {value}")
    return found


def _check_origin(model: nn.Module, decoder: Decoder, bank: Bank, strict: bool) -> None:
    if bank.dim != decoder.dim:
        raise ValueError(
            f"the bank has directions of width {bank.dim}, the residual stream of {type(model).__name__} "
            f"has width {decoder.dim}; they belong to different models"
        )
    check_layers(bank.layers, decoder.depth)
    made_from = bank.provenance.get("model")
    here = getattr(getattr(model, "config", None), "_name_or_path", None)
    if made_from and here and made_from != here:
        text = (
            f"the bank was extracted from {made_from!r} and the model is {here!r}; "
            f"its directions may mean nothing here"
        )
        if strict:
            raise ValueError(text)
        warnings.warn(text, stacklevel=4)


def _device(decoder: Decoder) -> torch.device:
    """Where the table is at home: with the first block."""
    return _device_of(decoder.blocks[0])


def _device_of(block: nn.Module) -> torch.device:
    """Where a block computes: accelerate says so of one whose weights lie elsewhere."""
    said = getattr(getattr(block, "_hf_hook", None), "execution_device", None)
    if said is not None:
        return torch.device(said)
    found = (parameter.device for parameter in block.parameters() if parameter.device.type != "meta")
    return next(found, torch.device("cpu"))
