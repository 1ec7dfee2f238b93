"""Record batches as no well-behaved client writes them, and a way to write them to a broker."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import cramjam
from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c, encode_varint

#: A header name that the broker takes and that is no UTF-8.
BAD_NAME = b"\xff\xfe"
_NAME = "zz"
_HEADER_BYTES = 61
CODECS = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}

Headers = Sequence[tuple[str, bytes | None]]


def batch(
    values: Sequence[tuple[bytes | None, bytes | None, Headers]], compression: int = 0
) -> bytearray:
    """A well-formed batch of keys, values and headers."""
    builder = DefaultRecordBatchBuilder(
        2, compression, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1,
        batch_size=1 << 28,
    )  # fmt: skip
    for number, (key, value, headers) in enumerate(values):
        builder.append(number, 1_700_000_000_000, key, value, list(headers))
    return bytearray(builder.build())


def with_bad_name(key: bytes, values: Sequence[bytes | None], op: Headers = ()) -> bytearray:
    """A batch whose first record has a header with a name that isn't UTF-8."""
    marked: Headers = [(_NAME, b""), *op]
    raw = batch([(key, value, op if number else marked) for number, value in enumerate(values)])
    return _sealed(raw.replace(_NAME.encode(), BAD_NAME, 1))


def bomb(unpacked_bytes: int) -> bytearray:
    """A batch of one compressed record whose value is this many zeros."""
    head, tail, length = bytearray(), bytearray(), bytearray()
    for number in (0, 0, 0, -1, unpacked_bytes):  # attributes, time, offset, no key, the value
        encode_varint(number, head.append)
    encode_varint(0, tail.append)
    encode_varint(len(head) + unpacked_bytes + len(tail), length.append)
    packer = cramjam.zstd.Compressor()
    packer.compress(bytes(length + head))
    zeros, left = bytes(1 << 20), unpacked_bytes
    while left:
        left -= packer.compress(zeros[: min(left, len(zeros))])
    packer.compress(bytes(tail))
    return _packed(bytes(packer.finish()), CODECS["zstd"])


def newer_snappy() -> bytearray:
    """A batch that Java's snappy reads, by its version field, and aiokafka's can't."""
    one = batch([(b"k", b"v", ())])[_HEADER_BYTES:]
    block = bytes(cramjam.snappy.compress_raw(bytes(one)))
    header = b"\x82SNAPPY\0" + struct.pack("!ii", 2, 1)
    return _packed(header + struct.pack("!i", len(block)) + block, CODECS["snappy"])


async def write(bootstrap: str, topic: str, partition: int, raw: bytearray) -> None:
    """Writes the batch as it is. Raises KafkaError where the broker refuses it."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    try:
        envelope = producer.create_batch()
        envelope.append(timestamp=None, key=None, value=b"")
        envelope.close()
        envelope._buffer = raw
        await (await producer.send_batch(envelope, topic, partition=partition))
    finally:
        await producer.stop()


def _packed(content: bytes, compression: int) -> bytearray:
    raw = batch([(None, b"", ())])[:_HEADER_BYTES] + content
    raw[8:12] = struct.pack("!i", len(raw) - 12)
    raw[21:23] = struct.pack("!h", compression)
    return _sealed(raw)


def _sealed(raw: bytearray) -> bytearray:
    raw[17:21] = struct.pack("!I", calc_crc32c(bytes(raw[21:])))
    return raw
