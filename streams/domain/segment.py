"""A segment: packed outcomes of one batch, as one object.

    lines, each with its newline | index | footer
    index:  n x (line u32, kind u8, 3 bytes zero, done_offset u64, offset u64, length u32)
    footer: index's byte offset u64 | n u32 | CRC-32 of the index u32 | magic 8 bytes

All little-endian, sorted by (line, done_offset). `offset` and `length` delimit a rendered line
within the segment, without its newline. Segments are self-describing: assembly lists a batch's
segments and needs nothing else. Orphans (stored, but never told to the controller) are harmless:
lines count only if the ledger has them, and of several copies the lowest done_offset wins.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from schemas.records import OutcomeKind

MAGIC = b"BHSEGM1\x00"
FOOTER_BYTES = 24
ENTRY_BYTES = 28

_FOOTER = struct.Struct("<QII8s")
_ENTRY = struct.Struct("<IB3xQQI")
_KINDS = {OutcomeKind.COMPLETED: 0, OutcomeKind.FAILED: 1}
_KIND_OF = {code: kind for kind, code in _KINDS.items()}


class SegmentError(ValueError):
    """These bytes are not a segment, or they are damaged."""


@dataclass(frozen=True, slots=True, order=True)
class SegmentEntry:
    """One rendered line: where it is, and which copy of it this is."""

    line: int
    done_offset: int
    kind: OutcomeKind
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class RenderedLine:
    """A line to pack: completed or failed, never retry. `rendered` has no newline."""

    line: int
    done_offset: int
    kind: OutcomeKind
    rendered: bytes


def build(lines: Iterable[RenderedLine]) -> bytes:
    """The segment's bytes."""
    body: list[bytes] = []
    index: list[bytes] = []
    position = 0
    for entry in sorted(lines, key=lambda r: (r.line, r.done_offset)):
        length = len(entry.rendered)
        body += (entry.rendered, b"\n")
        index.append(
            _ENTRY.pack(entry.line, _KINDS[entry.kind], entry.done_offset, position, length)
        )
        position += length + 1
    packed = b"".join(index)
    body.append(packed)
    body.append(_FOOTER.pack(position, len(index), zlib.crc32(packed), MAGIC))
    return b"".join(body)


def index_range(footer: bytes, object_bytes: int) -> tuple[int, int]:
    """Byte offset and length of the index, from the last FOOTER_BYTES. Raises SegmentError."""
    if len(footer) != FOOTER_BYTES:
        raise SegmentError("too short for a segment's footer")
    start, count, _crc, magic = _FOOTER.unpack(footer)
    if magic != MAGIC or start + count * ENTRY_BYTES + FOOTER_BYTES != object_bytes:
        raise SegmentError("not a segment, or cut")
    return start, count * ENTRY_BYTES


def read_index(index: bytes, footer: bytes) -> list[SegmentEntry]:
    """The entries, sorted by (line, done_offset). Raises SegmentError if they are damaged."""
    _start, count, crc, _magic = _FOOTER.unpack(footer)
    if len(index) != count * ENTRY_BYTES or zlib.crc32(index) != crc:
        raise SegmentError("damaged index")
    try:
        return [
            SegmentEntry(line, done_offset, _KIND_OF[kind], offset, length)
            for line, kind, done_offset, offset, length in _ENTRY.iter_unpack(index)
        ]
    except KeyError as error:
        raise SegmentError("unknown kind of line") from error
