"""An engine's banks beside its model: what requests may ask for, and what becomes of it."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from emosteer._version import __version__
from emosteer.bank import Bank
from emosteer.models.blocks import resolve_layers
from emosteer.models.positions import Positions, edges
from emosteer.models.table_rows import packed
from emosteer.ops import SteerTable
from emosteer.steering import _layers as layers_of

from .asking import BANK, LAYERS, PROGRAM, Asked
from .placed_reads import PlacedReads
from .reads import READ, READ_BANK
from .settings import Settings

# Of the operator and the layout of its rows, for the key of compile caches.
OPERATOR_VERSION = 2
# Characters of positions; what asks for more, a mask over a long text, is not remembered.
LONGEST_REMEMBERED = 1000
# Bits of a word of a row that say at which layers it acts.
WORD_BITS = 32


@dataclass(frozen=True)
class Placed:
    """A request's program as the engine's kernels read it.

    Attributes:
        row: the words of its row of the table (`Deployment.row_words`); equal programs have equal rows.
        numbers: `Positions.numbers`, where it acts.
        where: the same as the bytes of int64.
        edges: `positions.edges` of a mask over positions, as bytes of int64; None: no mask.
        needs_prompt: whether the length of the prompt matters for that.
        digest: of everything that its keys and values depend on, the prompt's length excepted.
    """

    row: bytes
    numbers: tuple[int, int, int, int, int]
    where: bytes
    edges: bytes | None
    needs_prompt: bool
    digest: str

    def salt(self, prompt: int) -> str:
        """What tells its keys and values from those of other programs, for a prompt of so many tokens."""
        return f"emosteer:{self.digest}:{prompt}" if self.needs_prompt else f"emosteer:{self.digest}"


class Deployment:
    """Banks for a model of so many blocks.

    A row of the table is the record of its program (`SteerTable.record`), the number of its unit of length, and
    one bit for each layer: one table for all layers, and for requests of all sets of layers.

    Args:
        settings: of the engine.
        depth: number of blocks.
        dim: width of the residual stream.

    Attributes:
        banks: by name.
        layers: where requests may steer, ascending.
        readable: where they may be read, ascending.
        unit_word: the word of a row with the number of its unit; the layers' bits follow.
        row_words: of a row.

    Raises:
        FileNotFoundError, ValueError: a bank that is not there or belongs to another model, layers that no bank has.
    """

    def __init__(self, settings: Settings, depth: int, dim: int) -> None:
        self.settings, self.depth, self.dim = settings, depth, dim
        self.banks = {name: Bank.load(file, depth=depth) for name, file in settings.banks.items()}
        for name, bank in self.banks.items():
            if bank.dim != dim:
                raise ValueError(
                    f"bank {name!r} has directions of width {bank.dim}, the residual stream of this model has width "
                    f"{dim}; they belong to different models"
                )
        known = {layer for bank in self.banks.values() for layer in bank.layers}
        self.layers = tuple(layer for layer in resolve_layers(settings.layers, depth) if layer in known)
        if not self.layers:
            raise ValueError(
                f"no bank has directions for the layers {settings.layers!r}; they have {sorted(known)}"
            )
        self.readable: tuple[int, ...] = ()
        if settings.readable is not None:
            wanted = resolve_layers(settings.readable, depth)
            self.readable = tuple(layer for layer in wanted if layer in known)
            if not self.readable:
                raise ValueError(
                    f"readable: no bank has directions for {settings.readable!r}; they have {sorted(known)}"
                )
        self._first = {}  # number of a bank's first direction, and of its unit
        count = 0
        for number, (name, bank) in enumerate(self.banks.items()):
            self._first[name] = count, number + 1
            count += len(bank)
        self.directions_count = count
        flags = 5 * settings.slots + 1
        self.unit_word = flags
        self.row_words = -(-(flags + 1 + -(-depth // WORD_BITS)) // 16) * 16
        self.digest = self._digest()
        if settings.digest and settings.digest != self.digest:
            raise ValueError(
                f"the banks of {settings.banks} are not those that the engine was started with: a file differs "
                f"between machines, or has changed since"
            )
        self._known = lru_cache(maxsize=4096)(self._placed)
        self._known_reads = lru_cache(maxsize=4096)(self._reads)
        for asked in settings.defaults:
            self.placed(asked)

    def placed(self, asked: Asked) -> Placed | None:
        """A request's program as kernels read it; None for the empty program. Remembered, unless it is long.

        Raises:
            ValueError: an unknown bank, concept or layer, too many directions, or a bank without a unit of length.
        """
        asked = replace(asked, prompt=None, reads=None)
        return (self._known if len(asked.positions) <= LONGEST_REMEMBERED else self._placed)(asked)

    def reads(self, asked: Asked) -> PlacedReads | None:
        """What is to be read, as the engine finds it; None for nothing. Remembered, unless it is long.

        Raises:
            ValueError: an unknown bank, concept or layer, or a bank without what the unit needs.
        """
        reads = asked.reads
        if reads is None:
            return None
        asked = replace(asked, program=None, layers="middle", positions="all", relative=False, prompt=None)
        return (self._known_reads if len(reads.positions) <= LONGEST_REMEMBERED else self._reads)(asked)

    def directions(self, layer: int) -> Tensor:
        """float32 `[K, D]`: all directions of all banks at a layer; of banks that lack the layer any unit vector."""
        parts = []
        for bank in self.banks.values():
            if layer in bank.layers:
                parts.append(bank.directions[layer].float())
            else:  # no row acts with these here
                parts.append(torch.eye(1, self.dim).expand(len(bank), -1))
        return torch.cat(parts).contiguous()

    def units(self, layer: int) -> Tensor:
        """float32 `[U]`: one unit of length for rows of unit 0 (fractions of the own norm: 1), 1 (the first bank), …"""
        scales = [bank.scale.get(layer, 1.0) for bank in self.banks.values()]
        return torch.tensor([1.0, *scales], dtype=torch.float32)

    def place(self, layer: int) -> tuple[int, int]:
        """`(word of a row, bit in it)` that say whether the row acts at a layer."""
        return self.unit_word + 1 + layer // WORD_BITS, layer % WORD_BITS

    def table(self, rows: Tensor) -> SteerTable:
        """The steering table in the first words of rows int32 `[R, row_words]`."""
        return SteerTable.of_record(rows, self.settings.slots)

    def _placed(self, asked: Asked) -> Placed | None:
        program = asked.program
        if program is None:
            raise ValueError(f"{PROGRAM} is not settled yet: ask Asked.over")
        if not program.slots and asked.bank is None:
            return None
        name, bank = self._bank(asked.bank)
        slots = self.settings.slots
        if len(program.slots) > slots:
            raise ValueError(
                f"{PROGRAM}: the program combines {len(program.slots)} directions, this engine takes {slots}; "
                f"start it with more slots"
            )
        first, unit = self._first[name]
        record = packed(
            program,
            slots,
            lambda concept: first + bank.index(concept),
            preserve_norm=True,
            relative=asked.relative,
        )
        layers = self._layers(asked, bank)
        if not program.slots:
            return None
        if not asked.relative and any(not bank.scale.get(layer, 0.0) > 0 for layer in layers):
            raise ValueError(
                f"bank {name!r} has no scale (mean residual norms), so strengths have no unit; "
                f'ask with "emosteer_relative": 1, for fractions of each token\'s own norm'
            )
        words = [0 if asked.relative else unit, *[0] * -(-self.depth // WORD_BITS)]
        for layer in layers:
            words[1 + layer // WORD_BITS] |= 1 << layer % WORD_BITS
        row = (record + struct.pack(f"{len(words)}I", *words)).ljust(4 * self.row_words, b"\0")
        positions = Positions(asked.spec, 1)
        inside = None if positions.mask is None else edges(positions.mask[0]).numpy().tobytes()
        identity = json.dumps(
            [self.digest, row.hex(), positions.numbers, None if inside is None else inside.hex()]
        )
        return Placed(
            row,
            positions.numbers,
            struct.pack("5q", *positions.numbers),
            inside,
            positions.needs_prompt,
            hashlib.blake2b(identity.encode(), digest_size=16).hexdigest(),
        )

    def _reads(self, asked: Asked) -> PlacedReads:
        reads = asked.reads
        assert reads is not None
        if not self.readable:
            raise ValueError(
                f'{READ}: this engine reads nothing; start it with the setting "readable", such as "readable": 0.66'
            )
        name, bank = self._bank(reads.bank or asked.bank, READ_BANK)
        return PlacedReads.of(reads, bank, self._first[name][0], self.readable, self.depth)

    def _bank(self, name: str | None, key: str = BANK) -> tuple[str, Bank]:
        if name is None:
            if len(self.banks) > 1:
                raise ValueError(f"{key} must say which bank: this engine has {', '.join(self.banks)}")
            return next(iter(self.banks.items()))
        if name not in self.banks:
            raise ValueError(f"{key}: there is no bank {name!r}; this engine has {', '.join(self.banks)}")
        return name, self.banks[name]

    def _layers(self, asked: Asked, bank: Bank) -> tuple[int, ...]:
        layers = asked.layers
        try:
            wanted = layers_of(list(layers) if isinstance(layers, tuple) else layers, self.depth, bank)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{LAYERS}: {error}") from None
        there = tuple(layer for layer in wanted if layer in self.layers)
        if len(there) < len(wanted) and (not isinstance(layers, str) or not there):
            missing = [layer for layer in wanted if layer not in self.layers]
            raise ValueError(f"{LAYERS}: this engine steers at layers {list(self.layers)}, not at {missing}")
        return there

    def _digest(self) -> str:
        """Of the directions, the units, the layout of the rows and what the operator is."""
        found = hashlib.blake2b(digest_size=16)
        shape = (
            self.layers,
            self.readable,
            self.depth,
            self.dim,
            self.directions_count,
            self.settings.slots,
            self.row_words,
        )
        found.update(repr((__version__, OPERATOR_VERSION, self.settings.traced, shape)).encode())
        for name, bank in self.banks.items():
            found.update(repr((name, bank.names, bank.layers, bank.scale)).encode())
            for layer in bank.layers:
                found.update(bank.directions[layer].cpu().contiguous().numpy().tobytes())
        return found.hexdigest()
