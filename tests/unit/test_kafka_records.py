"""What strangers wrote is read as far as it can be, and never makes a reader fall over."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from hypothesis import given
from hypothesis import strategies as st

from streams.kafka import records
from streams.kafka.record_batch import MAX_HEADERS, MAX_RECORDS, read_batch
from streams.kafka.records import read_strangers
from streams.kafka.unpack import MAX_UNPACKED_BYTES, UnpacksTooLargeError
from tests.support.strangers import BAD_NAME, CODECS, batch, bomb, newer_snappy, with_bad_name

OURS = TopicPartition("ours", 0)
THEIRS = TopicPartition("theirs", 0)


@pytest.fixture(autouse=True, scope="module")
def _hardened() -> None:
    read_strangers("theirs")


def read(raw: bytes, tp: TopicPartition = THEIRS, fetch_offset: int = 0) -> tuple[list, int]:  # type: ignore[type-arg]
    """The records that one fetch gives, and where the next has to begin."""
    part = records._Partition(
        tp, records._Fetched(raw), None, fetch_offset, None, None, True, "read_uncommitted"
    )
    return list(part), part.next_fetch_offset


def at(raw: bytearray, offset: int) -> bytes:
    """The batch as the broker has it at this offset."""
    return offset.to_bytes(8, "big") + bytes(raw[8:])


_BYTES = st.none() | st.binary(max_size=40)
_HEADERS = st.lists(st.tuples(st.text(max_size=5), _BYTES), max_size=3)
_VALUES = st.lists(st.tuples(_BYTES, _BYTES, _HEADERS), min_size=1, max_size=8)


@given(st.lists(st.tuples(_VALUES, st.sampled_from([0, *CODECS.values()])), max_size=4))
def test_well_formed_batches_are_read_as_aiokafka_reads_them(
    batches: list[
        tuple[list[tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]], int]
    ],
) -> None:
    raw, offset = b"", 0
    for values, codec in batches:
        raw += at(batch(values, codec), offset)
        offset += len(values)
    plain = [_fields(r) for r in _plain(raw)]
    came, following = read(raw)
    assert [_fields(r) for r in came] == plain
    assert following == offset
    if len(batches) == 1:
        ours = [_fields(r) for r in read_batch(memoryview(raw))]
        assert ours == plain


def _fields(record: Any) -> tuple[object, ...]:
    return (
        *(record.offset, record.timestamp, record.timestamp_type),
        *(record.key, record.value, tuple(record.headers)),
    )


def _plain(raw: bytes) -> Iterator[Any]:
    fetched = MemoryRecords(raw)
    while fetched.has_next():
        yield from fetched.next_batch()


def test_a_header_name_that_is_no_text_costs_nothing_but_the_name() -> None:
    raw = at(with_bad_name(b"k", [b"1", b"2"], [("op", b"seal")]), 5) + at(
        batch([(b"k", b"3", ())]), 7
    )
    came, following = read(raw, OURS, 5)
    assert [(r.offset, r.value) for r in came] == [(5, b"1"), (6, b"2"), (7, b"3")]
    assert came[0].headers == (("\ufffd\ufffd", b""), ("op", b"seal"))
    assert following == 8


def test_records_before_one_with_a_bad_header_come_once() -> None:
    raw = bytes(batch([(b"k", b"%d" % n, [("ab", b"")] if n == 2 else ()) for n in range(4)]))
    spoilt = bytearray(raw.replace(b"ab", BAD_NAME))
    came = list(
        records._Batch(
            MemoryRecords(bytes(spoilt)).next_batch(),
            memoryview(spoilt),
            records._Fetched(bytes(spoilt)),
        )
    )
    assert [r.value for r in came] == [b"0", b"1", b"2", b"3"]


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_a_batch_that_unpacks_to_too_much_is_passed_over_where_strangers_write(codec: int) -> None:
    big = batch([(None, bytes(MAX_UNPACKED_BYTES // 4), ())] * 5, codec)
    raw = at(big, 0) + at(batch([(b"k", b"after", ())], codec), 5)
    came, following = read(raw)
    assert ([r.value for r in came], following) == ([b"after"], 6)
    with pytest.raises(UnpacksTooLargeError):
        read(raw, OURS)


@pytest.mark.parametrize("raw", [bomb(2 * MAX_UNPACKED_BYTES), newer_snappy()])
def test_what_the_broker_takes_and_nobody_here_can_read_is_passed_over(raw: bytearray) -> None:
    came, following = read(at(raw, 0) + at(batch([(b"k", b"after", ())]), 1))
    assert ([r.value for r in came], following) == ([b"after"], 2)


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_a_batch_of_the_largest_size_is_read(codec: int) -> None:
    values = [(None, bytes(MAX_UNPACKED_BYTES // 5), ())] * 4
    came, _ = read(at(batch(values, codec), 0))
    assert len(came) == 4


def test_many_batches_that_unpack_to_much_come_by_and_by() -> None:
    one = batch([(None, bytes(1 << 20), ())], CODECS["zstd"])
    offsets, following = [], 0
    while following < 20:
        raw = b"".join(at(one, offset) for offset in range(following, 20))
        came, following = read(raw, fetch_offset=following)
        assert 4 <= len(came) <= 5
        offsets += [record.offset for record in came]
    assert offsets == list(range(20))


def test_headers_count_as_what_they_take_up() -> None:
    one = batch([(None, b"", [("", None)] * 25_000)])
    came, following = read(b"".join(at(one, offset) for offset in range(100)))
    assert len(came) == following == 3


@pytest.mark.parametrize(
    "raw",
    [
        batch([(None, b"", [("", None)] * (MAX_HEADERS + 1))], CODECS["zstd"]),
        batch([(None, bytes(70_000), [("", None)] * (MAX_HEADERS + 1))]),
        with_bad_name(b"k", [b"v"], [("", None)] * MAX_HEADERS),
        batch([(None, b"", ())] * (MAX_RECORDS + 1), CODECS["zstd"]),
    ],
    ids=["packed", "large", "name", "records"],
)
def test_what_takes_up_much_more_than_its_bytes_is_passed_over(raw: bytearray) -> None:
    (last,) = struct.unpack_from("!i", raw, 23)
    came, following = read(at(raw, 0) + at(batch([(b"k", b"after", ())]), last + 1))
    assert ([r.value for r in came if r.key], following) == ([b"after"], last + 2)


def test_as_many_headers_as_anybody_needs_are_read() -> None:
    headers = [(f"h{number}", b"") for number in range(MAX_HEADERS)]
    (record,) = read(at(batch([(None, b"", headers)], CODECS["gzip"]), 0))[0]
    assert list(record.headers) == headers


def test_a_broker_set_time_is_read_from_the_batch() -> None:
    raw = batch([(None, bytes(70_000), ()), (None, b"", ())])
    raw[21:23] = struct.pack("!h", 0x08)
    raw[35:43] = struct.pack("!q", 1_800_000_000_000)
    raw[17:21] = struct.pack("!I", calc_crc32c(bytes(raw[21:])))
    came, _ = read(bytes(raw))
    assert [(r.timestamp, r.timestamp_type) for r in came] == [(1_800_000_000_000, 1)] * 2
