"""Which row a recovery keeps, whatever order a changelog is in."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import decode, encode
from schemas.headers import ROW_WATERMARK
from schemas.records import ChunkRow
from streams.kafka.tables import RowStore


def _store() -> RowStore:
    return RowStore("memory://", cast("Any", None), cast("Any", None), table_name="t")


def _row(watermark: int) -> bytes:
    return encode(
        ChunkRow(
            batch_id="batch_1",
            chunk=0,
            watermark=watermark,
            accepted=b"",
            completed=watermark,
            failed=0,
            retries=(),
        )
    )


def _headers(watermark: int) -> tuple[tuple[str, bytes], ...]:
    return ((ROW_WATERMARK, str(watermark).encode()),)


def _watermark_of(value: bytes) -> int:
    row = decode(value)
    assert isinstance(row, ChunkRow)
    return row.watermark


@given(st.permutations(range(8)), st.integers(0, 8))
def test_the_row_with_the_highest_watermark_wins(order: list[int], deleted_at: int) -> None:
    store = _store()
    for watermark in order:
        is_deletion = watermark == deleted_at
        value = None if is_deletion else _row(watermark)
        store.apply(0, b"k", value, _headers(watermark))
    again = store.settle({0})
    if deleted_at == 7:
        assert b"k" not in store.data
    else:
        assert _watermark_of(store.data[b"k"]) == 7
    assert bool(again) == (order[-1] != 7)


def test_what_was_overwritten_by_something_older_is_written_again() -> None:
    store = _store()
    store.apply(2, b"k", _row(9), _headers(9))
    store.apply(2, b"k", _row(5), _headers(5))
    assert store.settle({2}) == [(2, b"k", _row(9), 9)]
    assert store.settle({2}) == []


def test_a_late_write_does_not_bring_a_deleted_row_back() -> None:
    store = _store()
    store.apply(0, b"k", None, _headers(9))
    store.apply(0, b"k", _row(8), _headers(8))
    assert store.settle({0}) == [(0, b"k", None, 9)]
    assert store.data == {}


def test_a_replay_of_own_writes_changes_nothing() -> None:
    store = _store()
    store.data[b"k"] = _row(9)
    store.partition_of[b"k"] = 0
    store.apply(0, b"k", _row(7), _headers(7))
    store.apply(0, b"k", _row(9), _headers(9))
    assert store.settle({0}) == []
    assert store.data[b"k"] == _row(9)


def test_rows_of_partitions_that_went_away_are_forgotten() -> None:
    store = _store()
    store.apply(0, b"mine", _row(1), _headers(1))
    store.apply(1, b"theirs", _row(1), _headers(1))
    store.settle({0})
    assert set(store.data) == {b"mine"}


def test_a_row_without_a_header_says_its_watermark_itself() -> None:
    store = _store()
    store.apply(0, b"k", _row(4), ())
    store.apply(0, b"k", _row(3), ())
    store.settle({0})
    assert store.data[b"k"] == _row(4)
