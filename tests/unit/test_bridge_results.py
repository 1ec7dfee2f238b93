"""The merge of a batch's two files, and the note of what was delivered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence

from hypothesis import given
from hypothesis import strategies as st

from schemas.headers import Kind
from streams.domain.bridge.delivered import Delivered
from streams.domain.bridge.results import Result, results, too_large
from streams.domain.ids import line_request_id
from tests.support.results import result_line

_BATCH = "batch_a"


def merged(total: int, output: Sequence[bytes], error: Sequence[bytes]) -> list[Result]:
    async def lines(of: Sequence[bytes]) -> AsyncIterator[bytes]:
        for line in of:
            yield line

    async def collect() -> list[Result]:
        return [r async for r in results(_BATCH, total, lines(output), lines(error))]

    return asyncio.run(collect())


@given(st.lists(st.sampled_from(["output", "error", "neither"]), max_size=40))
def test_every_line_of_either_file_comes_once_at_its_number(fates: list[str]) -> None:
    files = {
        kind: [result_line(_BATCH, n) for n, fate in enumerate(fates) if fate == kind]
        for kind in ("output", "error")
    }
    found = merged(len(fates), files["output"], files["error"])
    assert found == [
        Result(n, Kind(fate), result_line(_BATCH, n))
        for n, fate in enumerate(fates)
        if fate != "neither"
    ]


@given(
    st.lists(st.booleans(), min_size=1, max_size=20),
    st.integers(0, 19),
    st.sampled_from([b"", b"no json", b"[]", b'{"id":7}', b"\xff", b"[" * 100_000]),
)
def test_what_is_no_line_is_passed_over(fates: list[bool], place: int, bad: bytes) -> None:
    output = [result_line(_BATCH, n) for n, good in enumerate(fates) if good]
    error = [result_line(_BATCH, n) for n, good in enumerate(fates) if not good]
    output.insert(place, bad)
    assert [r.number for r in merged(len(fates), output, error)] == list(range(len(fates)))


def test_a_line_of_another_batch_stops_its_own_file_only() -> None:
    foreign = result_line("batch_other", 1)
    output = [result_line(_BATCH, 0), foreign, result_line(_BATCH, 2)]
    found = merged(4, output, [result_line(_BATCH, 1), result_line(_BATCH, 3)])
    assert [(r.number, r.kind) for r in found] == [
        (0, Kind.OUTPUT),
        (1, Kind.ERROR),
        (3, Kind.ERROR),
    ]


def test_a_line_too_large_is_named_by_its_ids() -> None:
    line = result_line(_BATCH, 3, 100)
    assert too_large(Result(3, Kind.OUTPUT, line)) == (line_request_id(_BATCH, 3), "c-3")
    bare = json.dumps({"id": "x"}).encode()
    assert too_large(Result(3, Kind.OUTPUT, bare)) == ("x", None)


def test_a_note_says_where_a_batch_that_is_half_done_goes_on() -> None:
    begun = Delivered().begun(_BATCH).after(41, 40)
    again = Delivered.of(begun.note())
    assert (again.begun(_BATCH).next, again.begun(_BATCH).sent) == (42, 40)
    assert not again.has(_BATCH)
    other = again.begun("batch_other")
    assert (other.next, other.sent) == (0, 0)


def test_a_note_remembers_the_last_batches_and_stays_small_enough_for_a_commit() -> None:
    done = Delivered()
    for n in range(1000):
        done = Delivered.of(done.begun(f"batch_{n}").after(10**9, 10**9).ended().note())
    assert all(done.has(f"batch_{n}") for n in range(900, 1000))
    assert not done.has("batch_0")
    assert not done.has("batch_1000")
    # The broker's offset.metadata.max.bytes is 4096 where nobody has changed it.
    assert len(done.begun("batch_x").after(10**9, 10**9).note().encode()) < 2300


def test_a_note_keeps_what_others_were_half_done_and_not_too_many_of_them() -> None:
    done = Delivered()
    for n in range(300):
        done = done.begun(f"batch_d{n}").ended()
    for n in range(20):
        done = Delivered.of(done.begun(f"batch_{n}").after(10**9, 10**9 - n).note())
    note = done.begun("batch_x").after(10**9, 10**9).note()
    assert len(note.encode()) < 2900
    for n in range(10, 20):
        done = Delivered.of(note).begun(f"batch_{n}")
        assert (done.next, done.sent) == (10**9 + 1, 10**9 - n)
        assert done.ended().begun(f"batch_{n}").next == 0
    assert Delivered.of(note).begun("batch_0").next == 0


@given(st.text() | st.sampled_from(['{"batch":1}', '{"next":-5,"sent":-1}', '{"done":"abc"}']))
def test_a_note_that_is_none_of_ours_begins_from_the_start(note: str) -> None:
    begun = Delivered.of(note).begun(_BATCH)
    assert (begun.next, begun.sent) == (0, 0)
