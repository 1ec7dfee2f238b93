"""What a controller says is due, so that the workers' gates know what deadlines ask for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schemas.records import DueLines
from streams.domain.dispatch.due import MAX_ENTRIES, PERIOD_MS, by_deadline
from tests.support.workers import HOUR_MS, NOW, Bench, FakeWorker, opened, worker


def due(bench: Bench, pool: str = "p") -> list[tuple[int, int]]:
    """(milliseconds left, lines) of each entry."""
    for backlog in bench.dispatcher.load(bench.now).pools:
        if backlog.pool == pool:
            return [(d.deadline_ms - NOW, d.lines) for d in backlog.due]
    return []


def test_lines_are_due_by_the_deadlines_of_their_batches_the_earliest_first() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("late", 100, deadline_ms=NOW + 9000))
    bench.dispatcher.open(opened("soon", 10, deadline_ms=NOW + 5000, tenant="b"))
    bench.dispatcher.open(opened("as soon", 5, deadline_ms=NOW + 5000))
    assert due(bench) == [(5000, 15), (9000, 100)]


def test_a_line_is_due_until_it_is_in_even_where_nothing_waits_to_be_released() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 10))
    w = worker()
    bench.hear(w)
    bench.release()
    w.read(bench.log)
    bench.hear(w)
    assert due(bench) == [(HOUR_MS, 10)]
    assert bench.dispatcher.load(bench.now).pools[0].lines == 0
    bench.dispatcher.settle("b", range(4), (), bench.now)
    bench.now += PERIOD_MS
    assert due(bench) == [(HOUR_MS, 6)]


def test_a_paused_batch_and_one_whose_window_is_over_ask_for_nothing() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("paused", 10, paused=True))
    bench.dispatcher.open(opened("over", 10, deadline_ms=NOW))
    assert due(bench) == []


def test_lines_that_may_run_at_several_upstreams_are_divided_over_those_that_are_served() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 11, routes=(("p", "q", "down"),)))
    bench.hear(FakeWorker("w", (0,), {"p": 4, "q": 0}))
    assert (due(bench), due(bench, "q"), due(bench, "down")) == (
        [(HOUR_MS, 6)],
        [(HOUR_MS, 5)],
        [],
    )


def test_lanes_share_what_is_not_loaded_and_nothing_is_lost() -> None:
    bench = Bench()
    bench.lane_of["b"] = [0] * 90 + [1] * 10
    bench.dispatcher.open(opened("b", 100, routes=(("p",), ("q",))))
    assert (due(bench), due(bench, "q")) == ([(HOUR_MS, 50)], [(HOUR_MS, 50)])
    bench.hear(FakeWorker("w", (0,), {"p": 1, "q": 1}))
    bench.choose()
    bench.now += PERIOD_MS
    assert due(bench)[0][1] + due(bench, "q")[0][1] == 100
    assert due(bench)[0][1] > due(bench, "q")[0][1]


@given(st.dictionaries(st.integers(NOW + 1, NOW + 10**9), st.integers(0, 1000), max_size=60))
def test_entries_are_few_and_hold_every_line_at_its_deadline_or_a_later_one(
    lines: dict[int, int],
) -> None:
    entries = by_deadline(lines, NOW)
    assert len(entries) <= MAX_ENTRIES
    assert [e.deadline_ms for e in entries] == sorted({e.deadline_ms for e in entries})
    assert sum(e.lines for e in entries) == sum(lines.values())
    for entry in entries:
        assert lines[entry.deadline_ms] > 0


def test_the_deadlines_that_differ_most_have_entries_of_their_own() -> None:
    hours = {NOW + 3_600_000 * n: 1 for n in range(2, 40)}
    entries = by_deadline({NOW + 60_000: 7, NOW + 600_000: 8, **hours}, NOW)
    assert entries[:3] == (
        DueLines(deadline_ms=NOW + 60_000, lines=7),
        DueLines(deadline_ms=NOW + 600_000, lines=8),
        DueLines(deadline_ms=NOW + 7_200_000, lines=1),
    )
