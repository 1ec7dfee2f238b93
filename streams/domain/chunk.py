"""Chunks: 512 lines of a batch, and the bitmap that says which of them are in.

The controller counts lines by it, and the meter bills them by it: a line that is set already
changes nothing.
"""

from __future__ import annotations

#: Lines of one chunk. A row of 512 is about 150 bytes: small enough to write after every event.
CHUNK_LINES = 512
BITMAP_BYTES = CHUNK_LINES // 8


def chunk_of(line: int) -> int:
    """The number of the chunk that holds the line."""
    return line // CHUNK_LINES


def chunk_key(batch_id: str, chunk: int) -> str:
    """The key of a chunk's row in its table."""
    return f"{batch_id}/{chunk}"


def bit_of(line: int) -> int:
    """The line's bit in its chunk's bitmap, the chunk's first line in the lowest."""
    return 1 << line % CHUNK_LINES


def packed(bitmap: int) -> bytes:
    """The bitmap as rows keep it."""
    return bitmap.to_bytes(BITMAP_BYTES, "little")


def unpacked(data: bytes) -> int:
    """The bitmap that a row keeps."""
    return int.from_bytes(data, "little")
