"""The dispatcher after a restart: what is out is not released again, what is lost is."""

from __future__ import annotations

import dataclasses

from schemas.records import OpenRetry
from streams.domain.dispatch.dispatcher import Dispatcher
from streams.domain.dispatch.lane import OpenBatch
from tests.support.workers import HOUR_MS, NOW, Bench, numbers, opened, worker


def test_after_a_restart_nothing_that_is_out_is_released_again() -> None:
    first = Bench()
    first.dispatcher.open(opened("b", 100))
    w = worker(32)
    first.hear(w)
    first.release()
    second = Bench()
    second.log = first.log
    second.dispatcher.open(opened("b", 100))
    for slice_ in first.sent:
        attempts = [(p.at.line, p.attempt) for p in slice_.lines]
        second.dispatcher.found_out("b", "p", (slice_.partition, slice_.offset), attempts, NOW)
    second.dispatcher.found_out("ended", "p", (0, 999), [(0, 1)], NOW)
    second.hear(w)
    assert second.release() == []
    second.run(w)
    assert sorted(numbers(first.sent) + numbers(second.run_to_the_end(w))) == list(range(100))


def test_after_a_restart_open_retries_keep_their_attempt_and_their_time() -> None:
    bench = Bench()
    retries = (OpenRetry(line=1, attempt=3, not_before_ms=NOW + 500),)
    bench.dispatcher.open(
        OpenBatch(
            batch_id="b",
            tenant="a",
            deadline_ms=NOW + HOUR_MS,
            created_at_ms=NOW,
            total=4,
            routes=(("p",),),
            done=bytes([0b0101]),
            retries=retries,
        )
    )
    bench.hear(worker())
    assert numbers(bench.release()) == [3]
    bench.now += 500
    (again,) = bench.release()
    assert [(p.at.line, p.attempt) for p in again.lines] == [(1, 4)]


def test_after_a_restart_a_line_that_came_back_is_not_taken_for_one_that_is_out() -> None:
    bench = Bench()
    retries = tuple(OpenRetry(line=n, attempt=1, not_before_ms=NOW) for n in (0, 1))
    bench.dispatcher.open(dataclasses.replace(opened("b", 3), retries=retries))
    # The slice of the first attempts is not committed, because line 2 still runs.
    bench.dispatcher.found_out("b", "p", (0, 0), [(0, 1), (1, 1), (2, 1)], NOW)
    bench.dispatcher.found_out("b", "p", (0, 1), [(1, 2)], NOW)
    bench.dispatcher.found_out("b", "", None, [(1, 1)], NOW)
    bench.hear(worker())
    found = [(p.at.line, p.attempt) for s in bench.release() for p in s.lines]
    assert found == [(0, 2)]


def test_outcomes_on_their_way_are_waited_for_and_their_loss_is_noticed() -> None:
    bench = Bench(Dispatcher("c0", lease_ms=1000))
    bench.dispatcher.open(opened("b", 3))
    bench.dispatcher.found_out("b", "", None, [(0, 2), (1, 1), (77, 1)], NOW)
    w = worker()
    bench.hear(w)
    assert numbers(bench.release()) == [2]
    retry = OpenRetry(line=1, attempt=1, not_before_ms=NOW)
    bench.dispatcher.settle("b", [], [retry], NOW)
    again = bench.release()
    assert [(p.at.line, p.attempt) for p in again[0].lines] == [(1, 2)]
    bench.now += 1000
    bench.hear(w)
    (lost,) = bench.release()
    assert [(p.at.line, p.attempt) for p in lost.lines] == [(0, 2)]


def test_a_lost_outcome_of_an_unloaded_line_is_released_when_its_plan_row_is_met() -> None:
    bench = Bench(Dispatcher("c0", lease_ms=1000))
    bench.dispatcher.open(opened("b", 2))
    bench.dispatcher.found_out("b", "", None, [(0, 5), (1, 1)], NOW)
    bench.now += 1000
    assert bench.choose() == []
    retry = OpenRetry(line=1, attempt=1, not_before_ms=NOW)
    bench.dispatcher.settle("b", [], [retry], NOW)
    bench.hear(worker())
    found = [(p.at.line, p.attempt) for s in bench.release() for p in s.lines]
    assert sorted(found) == [(0, 5), (1, 2)]


def test_a_partition_that_moves_to_another_worker_is_read_again_from_its_commit() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 100))
    old = worker(16)
    bench.hear(old)
    bench.release()
    old.read(bench.log)
    bench.hear(old)
    new = worker(16, "w1")
    bench.now += 3001
    bench.hear(new)
    assert bench.release() == []
    new.read(bench.log)
    bench.hear(new)
    assert bench.release() == []
    bench.run(new)
    assert len(numbers(bench.release())) == 16


def test_offsets_may_become_known_out_of_order_and_after_they_were_read() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 100))
    w = worker(16)
    bench.hear(w)
    chosen = bench.choose()
    assert len(chosen) == 8
    w.next_offset = {0: 3}
    bench.hear(w)
    for offset in (5, 0, 1, 2, 4, 3, 7, 6):
        bench.dispatcher.sent(chosen[offset], offset)
    assert bench.dispatcher.load(NOW).pools[0].lines == 84 + 10
    w.next_offset = {0: 8}
    bench.hear(w)
    assert len(numbers(bench.choose())) == 16


def test_workers_that_are_gone_for_good_are_forgotten() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 10))
    bench.hear(worker(name="old", partitions=(7,)))
    bench.now += HOUR_MS // 2
    bench.hear(worker(name="new"))
    assert {s.partition for s in bench.release()} == {0}
