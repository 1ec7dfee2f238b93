"""Priority, pause and a moved deadline in the dispatcher: in effect for every line not yet out."""

from __future__ import annotations

from collections import Counter

import pytest

from schemas.records import OpenRetry
from streams.domain.dispatch.slice import Slice
from tests.support.workers import HOUR_MS, NOW, Bench, FakeWorker, numbers, opened, worker

ENDS_MS = NOW + HOUR_MS


def steer(
    bench: Bench,
    batch_id: str,
    priority: int = 0,
    deadline_ms: int = ENDS_MS,
    *,
    paused: bool = False,
) -> None:
    bench.dispatcher.steer(batch_id, priority, deadline_ms, paused=paused)


def order(slices: list[Slice]) -> list[str]:
    """The batches in the order in which they first got a slice."""
    return list(dict.fromkeys(s.batch_id for s in slices))


def one_round(bench: Bench, w: FakeWorker) -> list[Slice]:
    """What is released once the worker has finished everything."""
    bench.run(w)
    return bench.release()


def test_a_higher_priority_goes_before_an_earlier_deadline() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("soon", 10, deadline_ms=NOW + 1000))
    bench.dispatcher.open(opened("low", 10, deadline_ms=NOW + 500, priority=-1))
    bench.dispatcher.open(opened("late", 10, deadline_ms=NOW + 9000, priority=1))
    assert order(bench.run_to_the_end(worker(1))) == ["late", "soon", "low"]


def test_of_equal_priorities_the_earlier_deadline_goes_first() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("late", 10, deadline_ms=NOW + 2000, priority=5))
    bench.dispatcher.open(opened("soon", 10, deadline_ms=NOW + 1000, priority=5))
    assert order(bench.run_to_the_end(worker(1))) == ["soon", "late"]


def test_a_new_priority_holds_from_the_next_line_on() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("first", 100, deadline_ms=NOW + 1000))
    bench.dispatcher.open(opened("second", 100, deadline_ms=NOW + 2000))
    w = worker(8)
    bench.hear(w)
    assert order(bench.release()) == ["first"]
    steer(bench, "second", 1, NOW + 2000)
    assert order(one_round(bench, w)) == ["second"]
    steer(bench, "second", -1, NOW + 2000)
    assert order(one_round(bench, w)) == ["first"]


def test_a_moved_deadline_holds_from_the_next_line_on() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("first", 100, deadline_ms=NOW + 1000))
    bench.dispatcher.open(opened("second", 100, deadline_ms=NOW + 2000))
    w = worker(8)
    bench.hear(w)
    assert order(bench.release()) == ["first"]
    steer(bench, "second", 0, NOW + 500)
    assert order(one_round(bench, w)) == ["second"]


def test_a_window_that_was_over_and_is_moved_goes_on() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 100, deadline_ms=NOW + 1000))
    w = worker(16)
    bench.hear(w)
    bench.release()
    bench.now += 1000
    assert one_round(bench, w) == []
    steer(bench, "b", 0, NOW + 5000)
    bench.hear(w)
    assert numbers(bench.release()) == list(range(16, 32))


@pytest.mark.parametrize("priority", [-100, 100])
def test_a_priority_changes_nothing_between_tenants(priority: int) -> None:
    bench = Bench()
    bench.dispatcher.open(opened("a", 4000, tenant="a"))
    bench.dispatcher.open(opened("b", 4000, tenant="b", priority=priority))
    w = worker(64)
    bench.hear(w)
    lines = Counter[str]()
    for _ in range(30):
        for slice_ in one_round(bench, w):
            lines[slice_.batch_id] += slice_.size
    assert abs(lines["a"] - lines["b"]) <= 64


def test_steering_in_a_turn_gives_the_tenant_no_second_one() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("a", 4000, tenant="a"))
    bench.dispatcher.open(opened("b", 4000, tenant="b"))
    w = worker(64)
    bench.hear(w)
    lines = Counter[str]()
    for n in range(30):
        steer(bench, "a", n % 3)
        for slice_ in one_round(bench, w):
            lines[slice_.batch_id] += slice_.size
    assert abs(lines["a"] - lines["b"]) <= 64


def test_a_batch_that_opens_paused_releases_nothing_until_it_is_resumed() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 100, paused=True))
    bench.dispatcher.open(opened("other", 10))
    w = worker(16)
    assert order(bench.run_to_the_end(w)) == ["other"]
    assert bench.dispatcher.wants() == [], "not even plan rows are read for it"
    assert not bench.dispatcher.is_open("b")
    assert bench.dispatcher.load(bench.now).pools == ()
    steer(bench, "b")
    assert numbers(bench.run_to_the_end(w)) == list(range(100))


def test_a_change_of_a_paused_batch_releases_nothing() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 100))
    w = worker(16)
    bench.hear(w)
    bench.release()
    steer(bench, "b", paused=True)
    steer(bench, "b", 50, NOW + 1000, paused=True)
    assert one_round(bench, w) == []


def test_a_slice_that_was_chosen_before_the_pause_comes_back_and_runs_after_it() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 10))
    w = worker(64)
    bench.hear(w)
    chosen = bench.choose()
    steer(bench, "b", paused=True)
    assert not bench.dispatcher.is_open("b")
    for slice_ in chosen:
        bench.dispatcher.returned(slice_, 0)
    assert bench.release() == []
    steer(bench, "b")
    assert sorted(numbers(bench.run_to_the_end(w))) == list(range(10))


def test_retries_that_fall_due_during_a_pause_wait_for_its_end() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 4))
    w = worker(64)
    bench.hear(w)
    bench.release()
    w.read(bench.log)
    steer(bench, "b", paused=True)
    for slice_ in list(w.held):
        w.finish(slice_)
    retries = [OpenRetry(line=n, attempt=1, not_before_ms=NOW + 100) for n in range(4)]
    bench.dispatcher.settle("b", (), retries, bench.now)
    bench.now += 1000
    bench.hear(w)
    assert bench.release() == []
    steer(bench, "b")
    released = bench.release()
    assert sorted(numbers(released)) == [0, 1, 2, 3]
    assert {picked.attempt for s in released for picked in s.lines} == {2}


def test_lines_found_out_after_a_restart_are_not_released_when_the_batch_is_resumed() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 10, paused=True))
    bench.dispatcher.found_out("b", "p", (0, 0), [(n, 1) for n in range(6)], NOW)
    w = worker(64)
    bench.hear(w)
    assert bench.release() == []
    steer(bench, "b")
    assert numbers(bench.release()) == [6, 7, 8, 9]


def test_steering_an_unknown_or_closed_batch_does_nothing() -> None:
    bench = Bench()
    steer(bench, "never")
    bench.dispatcher.open(opened("b", 10))
    bench.dispatcher.close("b")
    steer(bench, "b", 5)
    bench.hear(worker())
    assert bench.release() == []


def test_a_batch_without_room_releases_nothing_whatever_else_is_asked_of_it() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("held", 100, held=True))
    bench.dispatcher.open(opened("other", 10))
    w = worker(16)
    steer(bench, "held", 5)
    steer(bench, "held", 5, paused=True)
    steer(bench, "held", 5)
    assert order(bench.run_to_the_end(w)) == ["other"]
    assert bench.dispatcher.load(bench.now).pools == (), "it asks for no credits"
    steer(bench, "held", 5, paused=True)
    bench.dispatcher.hold("held", False)
    assert bench.run_to_the_end(w) == [], "it is still paused"
    steer(bench, "held", 5)
    assert numbers(bench.run_to_the_end(w)) == list(range(100))


def test_a_batch_that_loses_its_room_stops_and_goes_on_where_it_was() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 100))
    w = worker(16)
    bench.hear(w)
    released = numbers(bench.release())
    bench.dispatcher.hold("b", True)
    bench.run(w)
    assert bench.release() == []
    bench.dispatcher.hold("b", False)
    released += numbers(bench.run_to_the_end(w))
    assert sorted(released) == list(range(100))
