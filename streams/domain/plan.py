"""The plan: where each line of an input file lies, so that any range can be read without the rest.

    magic 8 bytes | rows u32 | reserved u32 | rows x (offset u64, length u32, model u16, pin u16)
    | pins

All little-endian. Row n is line n (0-based), which is line n + 1 of the file in messages. `offset`
and `length` delimit the line's bytes without its newline; `model` indexes the models in the
batch's BatchValidated event. Rows are fixed-size, so a chunk of rows is a range of the object.
`pin` is the number of the prompt version that the line uses, counted from 1; 0 is none. Its
highest bit says that only the sandbox can render the version: such lines run on pools of their
own, since they may wait for it. The versions themselves follow the rows
(streams.domain.prompts.pins), to the object's end.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAGIC = b"BHPLAN1\x00"
HEADER_BYTES = 16
ROW_BYTES = 16
#: Most models one input file may name (the plan's model number is 16 bits wide).
MAX_MODELS = 65_535
_SANDBOXED = 0x8000

_HEADER = struct.Struct("<8sII")
_ROW = struct.Struct("<QIHH")


class PlanError(ValueError):
    """These bytes are not a plan."""


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One line: byte offset and length in the input file, numbers of its model and its pin.

    sandboxed: whether only the sandbox can render its prompt.
    """

    offset: int
    length: int
    model: int
    pin: int = 0
    sandboxed: bool = False


class PlanBuilder:
    """Collects rows; memory is 16 bytes a line."""

    def __init__(self) -> None:
        self._rows = bytearray()

    def add(
        self, offset: int, length: int, model: int, pin: int = 0, *, sandboxed: bool = False
    ) -> None:
        """Adds the next line."""
        self._rows += _ROW.pack(offset, length, model, pin | _SANDBOXED if sandboxed else pin)

    @property
    def rows(self) -> int:
        """How many lines there are."""
        return len(self._rows) // ROW_BYTES

    def build(self, pins: bytes = b"") -> bytes:
        """The plan as an object's bytes."""
        return _HEADER.pack(MAGIC, self.rows, 0) + bytes(self._rows) + pins


def read_header(data: bytes) -> int:
    """The number of rows. Raises PlanError."""
    if len(data) < HEADER_BYTES:
        raise PlanError("too short for a plan's header")
    magic, rows, _reserved = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise PlanError("not a plan")
    return int(rows)


def rows_range(first: int, count: int) -> tuple[int, int]:
    """Byte offset and length, within the plan object, of `count` rows from row `first`."""
    return HEADER_BYTES + first * ROW_BYTES, count * ROW_BYTES


def pins_range(rows: int, plan_bytes: int) -> tuple[int, int]:
    """Byte offset and length of the pins within a plan object of this size; length 0 for none."""
    offset = HEADER_BYTES + rows * ROW_BYTES
    return offset, max(plan_bytes - offset, 0)


def read_rows(data: bytes) -> list[PlanRow]:
    """The rows in a range read by rows_range(). Raises PlanError if it is cut."""
    if len(data) % ROW_BYTES:
        raise PlanError("cut in the middle of a row")
    return [
        PlanRow(offset, length, model, pin & ~_SANDBOXED, pin >= _SANDBOXED)
        for offset, length, model, pin in _ROW.iter_unpack(data)
    ]
