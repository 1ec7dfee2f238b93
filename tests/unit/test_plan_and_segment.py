"""The two indexes in the object store read back what was written, and notice damage."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.records import OutcomeKind
from streams.domain import plan, segment
from streams.domain.plan import PlanBuilder, PlanError, PlanRow
from streams.domain.segment import FOOTER_BYTES, RenderedLine, SegmentError

_ROWS = st.lists(
    st.builds(
        PlanRow,
        st.integers(0, 2**63),
        st.integers(0, 2**32 - 1),
        st.integers(0, plan.MAX_MODELS),
        st.integers(0, 2**15 - 1),
        st.booleans(),
    ),
    max_size=20,
)
_LINES = st.lists(
    st.builds(
        RenderedLine,
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**63),
        st.sampled_from([OutcomeKind.COMPLETED, OutcomeKind.FAILED]),
        st.binary(max_size=20),
    ),
    max_size=20,
)


def _index(data: bytes) -> list[segment.SegmentEntry]:
    footer = data[-FOOTER_BYTES:]
    start, length = segment.index_range(footer, len(data))
    return segment.read_index(data[start : start + length], footer)


@given(rows=_ROWS, data=st.data())
def test_any_range_of_a_plan_is_read_without_the_rest(
    rows: list[PlanRow], data: st.DataObject
) -> None:
    builder = PlanBuilder()
    for row in rows:
        builder.add(row.offset, row.length, row.model, row.pin, sandboxed=row.sandboxed)
    built = builder.build()
    assert plan.read_header(built) == builder.rows == len(rows)
    first = data.draw(st.integers(0, len(rows)))
    count = data.draw(st.integers(0, len(rows) - first))
    at, length = plan.rows_range(first, count)
    assert plan.read_rows(built[at : at + length]) == rows[first : first + count]


@pytest.mark.parametrize("data", [b"", b"BHPLAN1", b"BHPLAN2\x00" + bytes(8), b"x" * 100])
def test_what_is_no_plan_is_refused(data: bytes) -> None:
    with pytest.raises(PlanError):
        plan.read_header(data)


def test_a_plan_cut_in_a_row_is_refused() -> None:
    with pytest.raises(PlanError):
        plan.read_rows(bytes(plan.ROW_BYTES + 1))


@given(lines=_LINES)
def test_a_segment_holds_every_line_sorted_each_before_a_newline(
    lines: list[RenderedLine],
) -> None:
    data = segment.build(lines)
    entries = _index(data)
    assert [(e.line, e.done_offset) for e in entries] == sorted(
        (line.line, line.done_offset) for line in lines
    )
    found = {(e.line, e.done_offset, e.kind, data[e.offset : e.offset + e.length]) for e in entries}
    assert found == {(r.line, r.done_offset, r.kind, r.rendered) for r in lines}
    assert all(data[e.offset + e.length : e.offset + e.length + 1] == b"\n" for e in entries)


@given(lines=_LINES.filter(bool), at=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_a_segment_whose_index_is_damaged_is_refused(
    lines: list[RenderedLine], at: int, flip: int
) -> None:
    data = bytearray(segment.build(lines))
    start, _ = segment.index_range(bytes(data[-FOOTER_BYTES:]), len(data))
    place = start + at % (len(data) - start)
    data[place] ^= flip
    with pytest.raises(SegmentError):
        _index(bytes(data))


@given(lines=_LINES, cut=st.integers(1, 2000))
def test_a_cut_segment_is_refused(lines: list[RenderedLine], cut: int) -> None:
    data = segment.build(lines)
    with pytest.raises(SegmentError):
        _index(data[: max(0, len(data) - cut)])


def test_an_unknown_kind_of_line_is_refused() -> None:
    entry = segment._ENTRY.pack(0, 9, 0, 0, 0)
    footer = segment._FOOTER.pack(0, 1, zlib.crc32(entry), segment.MAGIC)
    with pytest.raises(SegmentError, match="unknown kind"):
        segment.read_index(entry, footer)
