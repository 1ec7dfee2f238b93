"""Which lines the dispatcher releases, where, and in which order."""

from __future__ import annotations

from collections import Counter

import pytest

from schemas.records import ControllerLoad, OpenRetry, PoolBacklog
from streams.domain.dispatch.dispatcher import MAX_SLICE_BYTES, MAX_SLICE_LINES, Dispatcher
from streams.domain.dispatch.lane import MAX_WAITING, QUANTUM
from streams.domain.dispatch.share import Claim, divide
from tests.support.workers import HOUR_MS, NOW, Bench, FakeWorker, numbers, opened, worker


def test_every_line_is_released_once_in_order() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 2000))
    released = bench.run_to_the_end(worker())
    assert numbers(released) == list(range(2000))


def test_nothing_is_released_without_a_worker() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 10))
    assert bench.release() == []


def test_a_worker_gets_no_more_than_its_credits_until_it_says_otherwise() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 1000))
    w = worker(20)
    bench.hear(w)
    assert len(numbers(bench.release())) == 20
    bench.hear(w)
    assert bench.release() == []
    w.read(bench.log)
    bench.hear(w)
    assert bench.release() == []
    bench.run(w)
    assert len(numbers(bench.release())) == 20


def test_slices_are_small_when_credits_are_few_and_bounded_when_they_are_many() -> None:
    few = Bench()
    few.dispatcher.open(opened("b", 1000))
    few.hear(worker(8))
    assert {s.size for s in few.release()} == {1}
    many = Bench()
    many.dispatcher.open(opened("b", 5000))
    many.hear(worker(4000))
    assert max(s.size for s in many.release()) == MAX_SLICE_LINES


def test_a_slice_is_bounded_in_bytes_but_takes_one_line_of_any_size() -> None:
    bench = Bench(line_bytes=MAX_SLICE_BYTES // 4)
    bench.dispatcher.open(opened("b", 100))
    bench.hear(worker(640))
    assert max(s.size for s in bench.release()) == 4
    huge = Bench(line_bytes=MAX_SLICE_BYTES * 2)
    huge.dispatcher.open(opened("b", 3))
    huge.hear(worker(640))
    assert [s.size for s in huge.release()] == [1, 1, 1]


def test_a_stale_or_stopping_worker_gets_nothing() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 10))
    w = worker()
    bench.hear(w)
    bench.now += 3001
    assert bench.release() == []
    w.stopping = True
    bench.hear(w)
    assert bench.release() == []
    w.stopping = False
    bench.hear(w)
    assert len(numbers(bench.release())) == 10


def test_a_worker_without_partitions_or_credits_gets_nothing() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 10))
    bench.hear(worker(partitions=()))
    bench.hear(worker(0, "w1"))
    bench.hear(FakeWorker("w2", (1,), {"another": 9}))
    assert bench.release() == []


def test_lines_go_to_the_worker_with_the_most_room_and_to_all_its_partitions() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 120))
    small, large = worker(16, "small", (0,)), worker(64, "large", (1, 2))
    bench.hear(small)
    bench.hear(large)
    lines = Counter[int]()
    for slice_ in bench.release():
        lines[slice_.partition] += slice_.size
    assert lines[0] == 16
    assert lines[1] + lines[2] == 64
    assert min(lines[1], lines[2]) >= 24


def test_a_small_batch_of_another_tenant_does_not_wait_behind_a_huge_one() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("huge", 20_000, tenant="a"))
    w = worker(32)
    bench.hear(w)
    for _ in range(5):
        bench.release()
        bench.run(w)
    bench.dispatcher.open(opened("small", 10, tenant="b", created_at_ms=NOW + 1))
    before = len(bench.sent)
    while not any(s.batch_id == "small" for s in bench.sent):
        bench.release()
        bench.run(w)
    bench.release()
    since = bench.sent[before:]
    assert sum(s.size for s in since if s.batch_id == "small") == 10
    first = next(n for n, s in enumerate(since) if s.batch_id == "small")
    assert sum(s.size for s in since[:first]) <= 32 + QUANTUM


def test_tenants_share_credits_evenly_whatever_the_number_of_their_batches() -> None:
    bench = Bench()
    for n in range(5):
        bench.dispatcher.open(opened(f"a{n}", 1000, tenant="a"))
    bench.dispatcher.open(opened("b", 1000, tenant="b"))
    w = worker(64)
    bench.hear(w)
    for _ in range(10):
        bench.release()
        bench.run(w)
    lines = Counter[str]()
    for slice_ in bench.sent:
        lines[slice_.batch_id[0]] += slice_.size
    assert abs(lines["a"] - lines["b"]) <= 2 * QUANTUM


def test_long_lines_cost_a_tenant_more_of_its_turn() -> None:
    bench = Bench()
    bench.bytes_of["long"] = 100_000
    bench.dispatcher.open(opened("long", 500, tenant="a"))
    bench.dispatcher.open(opened("short", 500, tenant="b"))
    w = worker(64)
    bench.hear(w)
    for _ in range(8):
        bench.release()
        bench.run(w)
    lines = Counter[str]()
    for slice_ in bench.sent:
        lines[slice_.batch_id] += slice_.size
    assert lines["short"] > 5 * lines["long"] > 0


def test_within_a_tenant_the_earliest_deadline_goes_first() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("late", 100, deadline_ms=NOW + 2 * HOUR_MS))
    bench.dispatcher.open(opened("soon", 100, deadline_ms=NOW + HOUR_MS))
    released = bench.run_to_the_end(worker(16))
    order = [s.batch_id for s in released]
    assert order.index("late") > max(n for n, b in enumerate(order) if b == "soon")


def test_a_blocked_pool_holds_up_no_other_pool_even_within_one_batch() -> None:
    bench = Bench()
    # The first 2000 lines are of the blocked pool, more than any window holds.
    bench.lane_of["mixed"] = [0] * 2000 + [1] * 100
    bench.dispatcher.open(opened("mixed", 2100, routes=(("blocked",), ("p",))))
    released = bench.run_to_the_end(worker())
    assert numbers(released) == list(range(2000, 2100))
    hung = FakeWorker("w0", (0,), {"p": 8, "blocked": 8})
    hung.next_offset = {0: len(bench.log[0])}
    bench.hear(hung)
    assert {s.pool for s in bench.release()} == {"blocked"}


def test_a_model_with_two_pools_uses_the_credits_of_both() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 100, routes=(("p", "q"),)))
    bench.hear(FakeWorker("w0", (0,), {"p": 8, "q": 8}))
    released = bench.release()
    assert Counter(s.pool for s in released) == {"p": 8, "q": 8}
    assert sorted(numbers(released)) == list(range(16))


def test_a_batch_without_a_pool_waits_and_disturbs_nobody() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("lost", 10, routes=((),)))
    bench.dispatcher.open(opened("b", 10))
    assert {s.batch_id for s in bench.run_to_the_end(worker())} == {"b"}


def test_closing_a_batch_stops_it_at_once() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 1000))
    w = worker(16)
    bench.hear(w)
    bench.release()
    bench.dispatcher.close("b")
    bench.run(w)
    assert bench.release() == []
    assert not bench.dispatcher.is_open("b")
    assert bench.dispatcher.load(bench.now).pools == ()
    bench.dispatcher.close("b")


def test_a_paused_batch_goes_on_where_it_was() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 100))
    w = worker(16)
    bench.hear(w)
    bench.release()
    bench.dispatcher.steer("b", 0, NOW + HOUR_MS, paused=True)
    bench.run(w)
    assert bench.release() == []
    assert bench.dispatcher.load(bench.now).pools == ()
    bench.dispatcher.steer("b", 0, NOW + HOUR_MS, paused=False)
    assert numbers(bench.sent) + numbers(bench.run_to_the_end(w)) == list(range(100))


def test_nothing_is_released_after_the_deadline() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 100, deadline_ms=NOW + 1000))
    w = worker(16)
    bench.hear(w)
    bench.release()
    bench.now += 1000
    bench.run(w)
    assert bench.release() == []


def test_a_retry_waits_until_it_is_due_and_counts_its_attempts() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 2))
    w = worker()
    bench.hear(w)
    bench.release()
    w.read(bench.log)
    w.finish(w.held[0])
    retry = OpenRetry(line=1, attempt=1, not_before_ms=NOW + 5000)
    bench.dispatcher.settle("b", [0], [retry], NOW)
    bench.hear(w)
    assert bench.release() == []
    assert bench.dispatcher.due_at() == NOW + 5000
    bench.now += 5000
    bench.hear(w)
    (slice_,) = bench.release()
    assert [(p.at.line, p.attempt) for p in slice_.lines] == [(1, 2)]
    assert slice_.tail


def test_several_retries_are_each_released_when_due() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 5))
    w = worker()
    bench.hear(w)
    bench.release()
    retries = [OpenRetry(line=n, attempt=1, not_before_ms=NOW + 1000 * (n + 1)) for n in range(5)]
    bench.dispatcher.settle("b", [], retries, NOW)
    w.read(bench.log)
    w.finish(w.held[0])
    for n in range(5):
        bench.now = NOW + 1000 * (n + 1)
        bench.hear(w)
        assert numbers(bench.release()) == [n]


def test_many_waiting_retries_hold_back_fresh_lines() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 5000))
    w = worker(200)
    bench.hear(w)
    out = 0
    for _ in range(100):
        released = bench.release()
        out += len(numbers(released))
        retries = [
            OpenRetry(line=n, attempt=1, not_before_ms=NOW + HOUR_MS) for n in numbers(released)
        ]
        bench.dispatcher.settle("b", [], retries, NOW)
        w.read(bench.log)
        for slice_ in list(w.held):
            w.finish(slice_)
        bench.hear(w)
    assert MAX_WAITING <= out <= MAX_WAITING + 200


def test_a_lease_runs_only_from_the_commit_and_leads_back_to_the_same_partition() -> None:
    bench = Bench(Dispatcher("c0", lease_ms=1000))
    bench.dispatcher.open(opened("b", 4))
    w = worker(64, partitions=(3,))
    bench.hear(w)
    (first,) = bench.release()
    bench.now += 10_000
    bench.hear(w)
    assert bench.release() == []
    w.read(bench.log)
    w.finish(first)
    bench.hear(w)
    bench.dispatcher.settle("b", [0, 1], [], bench.now)
    assert bench.release() == []
    assert bench.dispatcher.due_at() == bench.now + 1000
    bench.now += 1000
    w.partitions = (2, 3)
    bench.hear(w)
    (again,) = bench.release()
    assert again.partition == 3
    assert [(p.at.line, p.attempt) for p in again.lines] == [(2, 1), (3, 1)]
    bench.dispatcher.settle("b", [2, 3], [], bench.now)
    assert bench.dispatcher.due_at() is None


def test_a_pinned_line_waits_for_its_partitions_worker_or_goes_anywhere_if_there_is_none() -> None:
    bench = Bench(Dispatcher("c0", lease_ms=1000))
    bench.dispatcher.open(opened("b", 1))
    w = worker(64, partitions=(3,))
    bench.hear(w)
    (first,) = bench.release()
    w.read(bench.log)
    w.finish(first)
    bench.hear(w)
    bench.now += 1000
    w.credits = {"p": 0}
    bench.hear(w)
    other = worker(64, "w1", (5,))
    bench.hear(other)
    assert bench.release() == []
    bench.now += 3500
    bench.hear(other)
    (again,) = bench.release()
    assert again.partition == 5


def test_a_settled_slice_leaves_no_lease_behind() -> None:
    bench = Bench(Dispatcher("c0", lease_ms=1000))
    bench.dispatcher.open(opened("b", 300))
    bench.run_to_the_end(worker())
    assert bench.dispatcher.due_at() is None


def test_a_slice_that_was_not_sent_is_released_again_with_the_same_attempt() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 4))
    bench.hear(worker())
    (chosen,) = bench.choose()
    bench.dispatcher.returned(chosen, NOW + 500)
    assert bench.release() == []
    bench.now += 500
    (again,) = bench.release()
    assert [(p.at.line, p.attempt) for p in again.lines] == [(n, 1) for n in range(4)]


def test_a_returned_slice_of_a_closed_batch_gives_its_credits_back() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("a", 8, deadline_ms=NOW + 1))
    bench.dispatcher.open(opened("b", 8))
    bench.hear(worker(1))
    (chosen,) = bench.choose()
    bench.dispatcher.close("a")
    bench.dispatcher.returned(chosen, NOW)
    (next_one,) = bench.release()
    assert next_one.batch_id == "b"


def test_a_plan_that_cannot_be_read_delays_only_its_own_batch() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("sick", 10, deadline_ms=NOW + 1000 + 1))
    bench.dispatcher.open(opened("well", 10))
    w = worker()
    bench.hear(w)
    bench.dispatcher.release(NOW)
    for want in bench.dispatcher.wants():
        if want.lane.batch.batch_id == "sick":
            bench.dispatcher.not_loaded(want, NOW + 1000)
        else:
            bench.dispatcher.loaded(want, [], 0)
    assert {s.batch_id for s in bench.run_to_the_end(w)} == {"well"}
    bench.now += 1000
    bench.hear(w)
    assert {s.batch_id for s in bench.release()} == {"sick"}


def test_late_or_unknown_news_is_ignored() -> None:
    dispatcher = Dispatcher("c0")
    retry = OpenRetry(line=0, attempt=1, not_before_ms=0)
    dispatcher.settle("nobody", [1], [retry], NOW)
    dispatcher.controller_load(ControllerLoad(controller="c0", at_ms=NOW, pools=()), NOW)
    bench = Bench(dispatcher)
    dispatcher.open(opened("b", 3))
    dispatcher.settle("b", [1], [retry], NOW)
    dispatcher.settle("b", [1, 0], [], NOW)
    assert numbers(bench.run_to_the_end(worker())) == [2]


def test_rows_that_arrive_after_the_close_are_dropped() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 3))
    bench.hear(worker())
    bench.dispatcher.release(NOW)
    (want,) = bench.dispatcher.wants()
    bench.dispatcher.close("b")
    bench.dispatcher.loaded(want, [], 3)
    assert bench.release() == []


def test_the_last_lines_of_a_batch_are_marked_as_its_tail() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 500))
    released = bench.run_to_the_end(worker(32))
    tails = [s.tail for s in released]
    assert tails == sorted(tails)
    assert sum(s.size for s in released if s.tail) in range(32, 80)
    small = Bench()
    small.dispatcher.open(opened("s", 10))
    assert all(s.tail for s in small.run_to_the_end(worker(64)))


def other(lines: int, tenants: int = 1) -> ControllerLoad:
    backlog = PoolBacklog(pool="p", lines=lines, tenants=tenants)
    unrelated = PoolBacklog(pool="q", lines=1_000_000)
    return ControllerLoad(controller="c1", at_ms=NOW, pools=(backlog, unrelated))


def test_two_controllers_share_credits_by_tenants_and_never_more_than_they_need() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 1000))
    bench.dispatcher.controller_load(other(1000), NOW)
    bench.hear(worker(64))
    assert len(numbers(bench.release())) == 32
    small = Bench()
    small.dispatcher.open(opened("b", 1000))
    small.dispatcher.controller_load(other(10), NOW)
    small.hear(worker(64))
    assert len(numbers(small.release())) == 54


def test_a_silent_controller_gives_its_share_up() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 1000))
    bench.dispatcher.controller_load(other(1000), NOW)
    bench.now += 3001
    bench.hear(worker(64))
    assert len(numbers(bench.release())) == 64


def test_a_controller_says_what_waits_at_it() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 1000, tenant="a"))
    bench.dispatcher.open(opened("c", 100, tenant="b"))
    bench.choose()
    (backlog,) = bench.dispatcher.load(NOW).pools
    assert (backlog.pool, backlog.lines) == ("p", 1100)
    assert backlog.tenants >= 1


@pytest.mark.parametrize(
    ("claims", "credits_", "given"),
    [
        ([Claim("a", 5), Claim("b", 500)], 64, {"a": 5, "b": 59}),
        ([Claim("a", 500), Claim("b", 500, 3)], 64, {"a": 16, "b": 48}),
        ([Claim("a", 0), Claim("b", 500)], 7, {"a": 0, "b": 7}),
        ([Claim("a", 2), Claim("b", 3)], 64, {"a": 2, "b": 3}),
        ([Claim("a", 0), Claim("b", 0)], 64, {"a": 0, "b": 0}),
        ([], 3, {}),
    ],
)
def test_credits_are_divided(claims: list[Claim], credits_: int, given: dict[str, int]) -> None:
    assert divide(claims, credits_, 0) == given


def test_a_single_credit_goes_round() -> None:
    claims = [Claim("a", 10), Claim("b", 10)]
    assert [divide(claims, 1, turn)["a"] for turn in range(4)] == [1, 0, 1, 0]


def test_news_of_lines_that_wait_in_the_window_is_heeded() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 60))
    w = worker(16)
    bench.hear(w)
    bench.release()
    later = OpenRetry(line=17, attempt=4, not_before_ms=NOW + 1000)
    bench.dispatcher.settle("b", [16, 19, 30], [later, later], NOW)
    bench.run(w)
    released = bench.run_to_the_end(w)
    assert sorted(numbers(bench.sent)) == sorted(set(range(60)) - {16, 17, 19, 30})
    bench.now += 1000
    bench.hear(w)
    again = bench.release()
    assert released
    assert [(p.at.line, p.attempt) for s in again for p in s.lines] == [(17, 5)]


def test_news_of_lines_that_wait_to_run_again_is_heeded() -> None:
    bench = Bench()
    bench.dispatcher.open(opened("b", 3))
    w = worker()
    bench.hear(w)
    (chosen,) = bench.choose()
    bench.dispatcher.returned(chosen, NOW + 10)
    later = OpenRetry(line=1, attempt=1, not_before_ms=NOW + 500)
    bench.dispatcher.settle("b", [0], [later], NOW)
    bench.now += 10
    assert numbers(bench.release()) == [2]
    bench.now += 490
    (again,) = bench.release()
    assert [(p.at.line, p.attempt) for p in again.lines] == [(1, 2)]
