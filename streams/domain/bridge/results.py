"""The results of an ended batch, in the order of its lines: its output and its error file, merged.

output file    id of line 0, id of line 2 …   ┐ each in input order; a line's id follows from
error file     id of line 1, id of line 5 …   ┘ the batch and the line's number
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec

from schemas.headers import Kind
from streams.domain.ids import line_request_id


@dataclass(frozen=True, slots=True)
class Result:
    """One line: its number in the batch, the file it is from, and its bytes without newline."""

    number: int
    kind: Kind
    line: bytes


class _Line(msgspec.Struct):
    id: str
    custom_id: Any = None


class _Id(msgspec.Struct):
    id: str


_ids = msgspec.json.Decoder(_Id)
_lines = msgspec.json.Decoder(_Line)


async def results(
    batch_id: str, total: int, output: AsyncIterator[bytes], error: AsyncIterator[bytes]
) -> AsyncGenerator[Result, None]:
    """Each line of either file, at its number.

    Numbers that are in neither file are left out, and so are lines of no number; what precedes
    and follows them is told all the same, as far as its order can be.
    """
    sides = (_Side(Kind.OUTPUT, output), _Side(Kind.ERROR, error))
    for side in sides:
        await side.advance()
    for number in range(total):
        wanted = line_request_id(batch_id, number)
        for side in sides:
            if side.id == wanted:
                yield Result(number, side.kind, side.line)
                await side.advance()
                break
        else:
            if all(side.id is None for side in sides):
                return


def too_large(result: Result) -> tuple[str, Any]:
    """The `id` and `custom_id` of a line that no record has room for."""
    found = _lines.decode(result.line)
    return found.id, found.custom_id


class _Side:
    """One of the files. id: of the line that is next; None at its end."""

    def __init__(self, kind: Kind, lines: AsyncIterator[bytes]) -> None:
        self.kind = kind
        self.id: str | None = None
        self.line = b""
        self._lines = lines

    async def advance(self) -> None:
        """Goes to the next line that has an id."""
        self.id = None
        async for line in self._lines:
            try:
                self.id, self.line = _ids.decode(line).id, line
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            return
