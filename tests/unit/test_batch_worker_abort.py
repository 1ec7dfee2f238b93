"""Batch calls that are cut for real-time ones: their lines wait again, here, as if never begun."""

from __future__ import annotations

from streams.adapters.inference_fake import Hang, Reply
from streams.batch_worker.calls import MAX_CUTS
from streams.domain.upstreams import templates_pool
from tests.support.worker_bench import Bench, lines, until
from tests.support.worker_prompts import PLAIN, ask, pin, planned, user

SANDBOXED = pin(user("{% if text %}{{ text }}{% endif %}"), model="small")
TEMPLATES = templates_pool("a")


async def _hanging(limit: int = 4) -> Bench:
    bench = Bench(lambda _path, _body: Hang(), limit=limit)
    bench.take(*lines(*range(limit + 2)))
    await until(lambda: bench.requests() == limit)
    return bench


def _numbers(bench: Bench) -> list[int]:
    return [body["n"] for body in bench.bodies()]


async def test_the_youngest_calls_are_cut_and_are_the_next_to_run() -> None:
    bench = await _hanging()
    pool = bench.worker.pools["a"]
    pool.allow(2, "yield")
    assert pool.calls.cut(2) == 2
    assert pool.calls.cut(2) == 0, "those that are being cut count no more"
    await until(lambda: len(pool.calls) == 2)
    assert (pool.running, bench.held(), bench.outcomes) == (2, 6, [])
    assert pool.wants == 4
    pool.allow(4, "silence")
    await until(lambda: bench.requests() == 6)
    assert _numbers(bench) == [0, 1, 2, 3, 2, 3]


async def test_it_is_no_attempt_and_the_line_is_answered_and_acked_once() -> None:
    answer = [Hang(), Hang()]
    bench = Bench(lambda _path, _body: answer.pop() if answer else Reply(), limit=2)
    bench.take(*lines(0, 1))
    await until(lambda: bench.requests() == 2)
    assert bench.worker.pools["a"].calls.cut(0) == 2
    await until(lambda: bench.finished == [0])
    assert sorted((o.line, o.attempt) for o in bench.outcomes) == [(0, 1), (1, 1)]
    assert bench.held() == 0


async def test_a_line_is_cut_three_times_and_then_left_alone() -> None:
    bench = await _hanging(limit=1)
    calls = bench.worker.pools["a"].calls
    for times in range(MAX_CUTS):
        assert calls.cut(0) == 1
        await until(lambda times=times: bench.requests() == times + 2)  # type: ignore[misc]
    assert calls.cut(0) == 0
    assert _numbers(bench) == [0] * (MAX_CUTS + 1)


async def test_what_was_cut_ends_with_its_batch() -> None:
    bench = await _hanging()
    pool = bench.worker.pools["a"]
    pool.allow(0, "yield")
    pool.calls.cut(0)
    bench.worker.end("b1")
    await until(lambda: bench.finished == [0])
    await until(lambda: (bench.held(), len(pool.calls), pool.running) == (0, 0, 0))


async def test_what_was_cut_does_not_begin_again_once_it_is_anothers() -> None:
    bench = await _hanging()
    pool = bench.worker.pools["a"]
    pool.calls.cut(0)
    bench.worker.revoked({0})
    await until(lambda: len(pool.calls) == 0)
    assert (bench.held(), bench.finished, bench.requests()) == (0, [], 4)


async def test_a_worker_that_stops_leaves_what_was_cut_to_the_next() -> None:
    bench = await _hanging()
    bench.worker.pools["a"].calls.cut(0)
    await bench.worker.stop(0.05)
    assert (bench.outcomes, bench.finished, bench.requests()) == ([], [], 4)


async def test_lines_that_came_from_the_sandbox_are_cut_alike_and_go_first_again() -> None:
    bench = Bench(lambda _path, _body: Hang(), limit=2)
    bench.renderer.answer = lambda variables: [variables["text"]]
    pins = await planned(bench, PLAIN, SANDBOXED)
    for n in range(4):
        bench.take(ask(n, 2, variables={"text": f"t{n}"}), pins=pins, pool=TEMPLATES, offset=n)
    await until(lambda: bench.requests() == 2)
    calls = bench.worker.pools["a"].calls
    assert calls.cut(1) == 1
    await until(lambda: bench.requests() == 3)
    asked = [body["messages"][0]["content"] for body in bench.bodies()]
    assert asked == ["t0", "t1", "t1"]
    assert (bench.worker.pools["a"].running, len(calls)) == (2, 2)
    assert bench.held(TEMPLATES) == 4


async def test_the_load_tells_the_truth_about_calls() -> None:
    bench = Bench(lambda _path, _body: Hang(), limit=2)
    bench.renderer.gate.clear()
    pins = await planned(bench, PLAIN, SANDBOXED)
    pool, renders = bench.worker.pools["a"], bench.worker.pools[TEMPLATES]
    bench.take(ask(0, 2, variables={"text": "x"}), pins=pins, pool=TEMPLATES)
    await until(lambda: len(bench.renderer.asked) == 1)
    assert (len(pool.calls), len(renders.calls), renders.running) == (0, 0, 1)
    bench.take(*lines(0), batch="b2")
    await until(lambda: len(pool.calls) == 1)
    bench.worker.end("b2")
    await until(lambda: len(pool.calls) == 0)
