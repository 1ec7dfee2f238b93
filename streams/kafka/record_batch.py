"""Reads a record batch (format v2) that a stranger wrote, with limits that aiokafka's parser lacks.

A header takes two bytes and the Python object of it seventy, so that 1.6 KB of a compressed record
become 600 MB; and a name that isn't UTF-8 is an error there. It is ten times slower than compiled
code, some 4 µs a record.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from aiokafka.record.util import decode_varint

from streams.kafka.unpack import gzip_decode, lz4_decode, snappy_decode, zstd_decode

MAX_HEADERS = 100
#: Records that are read already are stepped over one by one when a batch is fetched again.
MAX_RECORDS = 100_000

_UNPACK: Mapping[int, Callable[[Any], Any]] = {
    0: bytes,
    1: gzip_decode,
    2: snappy_decode,
    3: lz4_decode,
    4: zstd_decode,
}
_BASE_OFFSET_AT, _ATTRIBUTES_AT, _TIMES_AT, _COUNT_AT, _RECORDS_AT = 0, 21, 27, 57, 61
_CODEC_MASK, _STAMPED_MASK = 0x07, 0x08


class TooManyError(ValueError):
    """A batch has more than MAX_RECORDS, or a record more than MAX_HEADERS."""


class StrangersRecord(NamedTuple):
    """One record, with the fields that aiokafka's have."""

    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    checksum: None = None


def read_batch(data: memoryview) -> Iterator[StrangersRecord]:
    """The records of one batch, names with U+FFFD for what isn't UTF-8.

    Raises TooManyError, UnpacksTooLargeError, ValueError and whatever else a codec raises.
    """
    (base_offset,) = struct.unpack_from("!q", data, _BASE_OFFSET_AT)
    (attributes,) = struct.unpack_from("!h", data, _ATTRIBUTES_AT)
    first_ms, stamped_ms = struct.unpack_from("!qq", data, _TIMES_AT)
    (count,) = struct.unpack_from("!i", data, _COUNT_AT)
    if count > MAX_RECORDS:
        raise TooManyError
    stamped = bool(attributes & _STAMPED_MASK)
    records, at = _UNPACK[attributes & _CODEC_MASK](data[_RECORDS_AT:]), 0
    for _ in range(count):
        size, at = decode_varint(records, at)
        end = at + size
        later_ms, at = decode_varint(records, at + 1)  # after its attributes, which mean nothing
        further, at = decode_varint(records, at)
        key, at = _bytes(records, at)
        value, at = _bytes(records, at)
        headers, at = _headers(records, at)
        if at != end:
            raise ValueError("A record is not as long as it says.")
        at_ms = stamped_ms if stamped else first_ms + later_ms
        yield StrangersRecord(base_offset + further, at_ms, int(stamped), key, value, headers)


def _bytes(records: bytes, at: int) -> tuple[bytes | None, int]:
    size, at = decode_varint(records, at)
    if size < 0:
        return None, at
    return records[at : at + size], at + size


def _headers(records: bytes, at: int) -> tuple[list[tuple[str, bytes | None]], int]:
    count, at = decode_varint(records, at)
    if count > MAX_HEADERS:
        raise TooManyError
    found = []
    for _ in range(count):
        name, at = _bytes(records, at)
        value, at = _bytes(records, at)
        found.append(((name or b"").decode("utf-8", "replace"), value))
    return found, at
