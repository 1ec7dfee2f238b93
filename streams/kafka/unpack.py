"""Unpacks compressed record batches up to a size; aiokafka unpacks whatever they say to be.

A broker takes 22 KB that unpack to 700 MB, and a topic that the broker itself unpacks for
(`compression.type=uncompressed`) costs the broker those 700 MB.
"""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable, Iterator
from typing import Any

import aiokafka.codec
import aiokafka.record.default_records
import cramjam
from aiokafka.record._crecords import default_records as compiled

#: Four of the largest records; producers fill their batches by what they take up unpacked.
MAX_UNPACKED_BYTES = 16 * 1024 * 1024
_XERIAL_HEADER_BYTES = 16


class UnpacksTooLargeError(ValueError):
    """A record batch would take up more than MAX_UNPACKED_BYTES."""


def gzip_decode(packed: Any) -> bytes:
    """As aiokafka's. Raises UnpacksTooLargeError, OSError, EOFError, zlib.error."""
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
        unpacked = file.read(MAX_UNPACKED_BYTES + 1)
    if len(unpacked) > MAX_UNPACKED_BYTES:
        raise UnpacksTooLargeError
    return unpacked


def lz4_decode(packed: Any) -> bytes:
    """As aiokafka's. Raises UnpacksTooLargeError, cramjam.DecompressionError."""
    return _into_space(cramjam.lz4.decompress_into, packed)


def zstd_decode(packed: Any) -> bytes:
    """As aiokafka's. Raises UnpacksTooLargeError, cramjam.DecompressionError."""
    return _into_space(cramjam.zstd.decompress_into, packed)


def snappy_decode(packed: Any) -> bytes:
    """As aiokafka's. Raises UnpacksTooLargeError, cramjam.DecompressionError, struct.error."""
    blocks = list(_snappy_blocks(memoryview(packed)))
    if sum(map(cramjam.snappy.decompress_raw_len, blocks)) > MAX_UNPACKED_BYTES:
        raise UnpacksTooLargeError
    return b"".join(bytes(cramjam.snappy.decompress_raw(block)) for block in blocks)


def limit_unpacking() -> None:
    """Makes aiokafka's readers use these, in this process. Idempotent."""
    for records in (compiled, aiokafka.record.default_records):
        for decode in (gzip_decode, lz4_decode, snappy_decode, zstd_decode):
            setattr(records, decode.__name__, decode)


def _into_space(decompress_into: Callable[[Any, bytearray], int], packed: Any) -> bytes:
    # The system hands out such space in pages of zeros: what stays unused costs nothing.
    space = bytearray(MAX_UNPACKED_BYTES)
    try:
        size = decompress_into(packed, space)
    except cramjam.DecompressionError as error:
        if "whole buffer" in str(error):
            raise UnpacksTooLargeError from error
        raise
    return bytes(memoryview(space)[:size])


def _snappy_blocks(packed: memoryview) -> Iterator[memoryview]:
    if not aiokafka.codec._detect_xerial_stream(packed):
        yield packed
        return
    at = _XERIAL_HEADER_BYTES
    while at < len(packed):
        (size,) = struct.unpack_from("!I", packed, at)
        yield packed[at + 4 : at + 4 + size]
        at += 4 + size
