"""The lines of an ended batch's input file that are in its error file, as they were sent.

    error file    id of line 2, id of line 5 …   ┐ both in input order, read side by side:
    input file    line 0, line 1, line 2 …       ┘ a line's id follows from batch and number

Nothing else of the ended batch is needed: its plan and segments may be gone. Memory: a chunk and
a line of each file.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from api.files.stored_lines import stored_lines
from schemas.records import ObjectRef
from streams.domain.ids import line_request_id
from streams.ports.object_store import ObjectStore

_BOM = b"\xef\xbb\xbf"


class LinesDiffer(Exception):  # noqa: N818 - it is what is wrong
    """The error file names lines that the input file doesn't have."""


class _ErrorLine(msgspec.Struct):
    id: str


_error_lines = msgspec.json.Decoder(_ErrorLine)


async def failed_lines(
    store: ObjectStore, batch_id: str, source: ObjectRef, errors: ObjectRef
) -> AsyncGenerator[bytes, None]:
    """The lines, each with its newline. Raises ObjectStoreError, LinesDiffer."""
    number = 0
    async with (
        aclosing(stored_lines(store, errors)) as failed,
        aclosing(stored_lines(store, source)) as lines,
    ):
        async for error in failed:
            wanted = _id_of(error)
            async for line in lines:
                found = line_request_id(batch_id, number) == wanted
                raw = line.removeprefix(_BOM) if number == 0 else line
                number += 1
                if found:
                    yield raw + b"\n"
                    break
            else:
                raise LinesDiffer(LinesDiffer.__doc__)


def _id_of(error: bytes) -> str:
    try:
        return _error_lines.decode(error).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as why:
        raise LinesDiffer(LinesDiffer.__doc__) from why
