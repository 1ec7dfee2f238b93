"""Where the batch-worker has the prompt versions of its lines from: the pins in their plan."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from schemas.records import ClaimCheck, OutcomeKind
from streams.batch_worker import prompts
from streams.batch_worker.prompts import PinnedPrompts, PromptCache
from streams.domain.clock import SystemClock
from streams.domain.prompts.pins import Pin, PinsError
from streams.domain.prompts.prompt import Prompt, compile_prompt
from tests.support.worker_bench import FAR_MS, Bench, lines, until
from tests.support.worker_prompts import PLAIN, PLAN, ask, pin, planned, ran, user


async def test_lines_that_begin_together_fetch_and_compile_their_version_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[bytes] = []

    def counted(messages: bytes, model_config: bytes) -> Prompt:
        compiled.append(messages)
        return compile_prompt(messages, model_config)

    monkeypatch.setattr(prompts, "compile_prompt", counted)
    bench = Bench(limit=64)
    pins = await planned(bench, PLAIN)
    fetched = _counted_reads(bench)
    await ran(bench, *(ask(n, variables={"text": str(n)}) for n in range(40)), pins=pins)
    await ran(bench, *(ask(n, variables={"text": str(n)}) for n in range(40, 80)), pins=pins)
    await until(lambda: len(bench.finished) == 2)
    assert fetched == [PLAN]
    assert compiled == [PLAIN.messages]
    texts = [body["messages"][1]["content"] for body in bench.bodies()]
    assert sorted(texts) == sorted(f"Sum up: {n}" for n in range(80))


def _counted_reads(bench: Bench) -> list[str]:
    fetched: list[str] = []
    get_range = bench.store.get_range

    async def counted(key: str, offset: int, length: int) -> bytes:
        fetched.append(key)
        return await get_range(key, offset, length)

    bench.store.get_range = counted  # type: ignore[method-assign]
    return fetched


async def test_a_large_version_is_compiled_once_beside_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[str] = []

    def counted(messages: bytes, model_config: bytes) -> Prompt:
        threads.append(threading.current_thread().name)
        return compile_prompt(messages, model_config)

    monkeypatch.setattr(prompts, "compile_prompt", counted)
    bench = Bench(limit=64)
    pins = await planned(bench, pin(user("y" * 20_000 + "{{text}}"), model="m"))
    await ran(bench, *(ask(n, variables={"text": str(n)}) for n in range(20)), pins=pins)
    assert len(threads) == 1
    assert threads != [threading.main_thread().name]
    assert {o.kind for o in bench.outcomes} == {OutcomeKind.COMPLETED}


async def test_a_version_that_does_not_compile_is_tried_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[bytes] = []

    def counted(messages: bytes, model_config: bytes) -> Prompt:
        tried.append(messages)
        return compile_prompt(messages, model_config)

    monkeypatch.setattr(prompts, "compile_prompt", counted)
    bench = Bench()
    pins = await planned(bench, Pin("s", 1, b"[]", b"{}"), PLAIN)
    broken = [ask(n, 1, variables={"text": "x"}) for n in range(5)]
    await ran(bench, *broken, ask(9, 2, variables={"text": "x"}), pins=pins)
    assert tried.count(b"[]") == 1
    assert sorted(o.line for o in bench.outcomes if o.reason == "input_lost") == [0, 1, 2, 3, 4]


async def test_a_store_that_fails_delays_the_lines_until_it_is_back() -> None:
    bench = Bench()
    pins = await planned(bench, PLAIN)
    bench.store.fail(2, "get_range")
    fetched = _counted_reads(bench)
    await ran(bench, *(ask(n, variables={"text": "x"}) for n in range(4)), pins=pins)
    assert {o.kind for o in bench.outcomes} == {OutcomeKind.COMPLETED}
    # All of them wait for the same read.
    assert fetched == [PLAN] * 3


async def test_a_line_whose_window_ends_while_the_store_fails_is_not_started() -> None:
    bench = Bench()
    pins = await planned(bench, PLAIN)
    bench.store.broken.add(PLAN)
    soon_ms = SystemClock().now_ms() + 50
    await ran(bench, ask(variables={"text": "x"}), pins=pins, deadline_ms=soon_ms)
    assert (bench.requests(), bench.sent) == (0, [])


async def test_a_window_made_longer_counts_for_lines_that_wait_for_an_earlier_read() -> None:
    bench = Bench()
    pins = await planned(bench, PLAIN)
    bench.store.broken.add(PLAN)
    soon_ms = SystemClock().now_ms() + 100
    bench.take(ask(0, variables={"text": "x"}), pins=pins, deadline_ms=soon_ms)
    bench.take(ask(1, variables={"text": "x"}), pins=pins, offset=1)
    await until(lambda: 0 in bench.finished)
    bench.store.broken.clear()
    await until(lambda: 1 in bench.finished)
    assert [(o.line, o.kind) for o in bench.outcomes] == [(1, OutcomeKind.COMPLETED)]


async def test_the_end_of_a_batch_ends_the_read_that_only_its_lines_waited_for() -> None:
    bench = Bench()
    pins = await planned(bench, PLAIN)
    bench.store.broken.add(PLAN)
    fetched = _counted_reads(bench)
    before = asyncio.all_tasks()
    bench.take(*(ask(n, variables={"text": "x"}) for n in range(3)), pins=pins)
    await until(lambda: fetched)
    bench.worker.end("b1")
    await until(lambda: asyncio.all_tasks() == before)
    bench.store.broken.clear()
    again = ask(9, variables={"text": "x"})
    bench.take(again, pins=pins, batch="b2", offset=5)
    await until(lambda: 5 in bench.finished)
    assert bench.outcomes[0].kind is OutcomeKind.COMPLETED


async def _gone(bench: Bench, pins: ClaimCheck) -> ClaimCheck | None:
    bench.store.objects.clear()
    return pins


async def _cut(bench: Bench, pins: ClaimCheck) -> ClaimCheck | None:
    bench.store.objects[PLAN] = bench.store.objects[PLAN][:-1]
    return pins


async def _garbled(bench: Bench, pins: ClaimCheck) -> ClaimCheck | None:
    plan = bench.store.objects[PLAN]
    bench.store.objects[PLAN] = plan[: pins.offset] + b"x" * pins.length
    return pins


async def _no_prompt(bench: Bench, _pins: ClaimCheck) -> ClaimCheck | None:
    return await planned(bench, Pin("s", 1, b'{"not": "messages"}', b"{}"))


async def _too_few(bench: Bench, _pins: ClaimCheck) -> ClaimCheck | None:
    return await planned(bench, PLAIN, PLAIN)


async def _none(_bench: Bench, _pins: ClaimCheck) -> ClaimCheck | None:
    return None


@pytest.mark.parametrize("broken", [_gone, _cut, _garbled, _no_prompt, _too_few, _none])
async def test_a_plan_that_can_not_be_read_back_fails_its_prompt_lines_only(broken: Any) -> None:
    bench = Bench()
    pins = await broken(bench, await planned(bench, PLAIN, PLAIN, PLAIN))
    number = 3 if broken is _too_few else 1
    await ran(bench, ask(0, number, variables={"text": "x"}), *lines(1), pins=pins)
    found = sorted((o.line, o.kind, o.reason) for o in bench.outcomes)
    assert found == [(0, OutcomeKind.FAILED, "input_lost"), (1, OutcomeKind.COMPLETED, "")]
    rendered = json.loads(next(o.rendered for o in bench.outcomes if o.line == 0) or b"")
    assert rendered["custom_id"] == "c0"


async def test_versions_of_the_plans_used_last_are_kept_within_their_bytes() -> None:
    bench = Bench()
    claims = [await planned(bench, PLAIN, key=f"batches/b{n}/plan/1") for n in range(5)]
    size = PinnedPrompts([PLAIN]).size_bytes
    for limits in ({"max_plans": 3}, {"max_bytes": 3 * size + 1}):
        cache = PromptCache(bench.store, SystemClock(), **limits)
        for claim in claims[:3]:
            assert cache.kept(claim) is None
            await cache.fetched(claim, FAR_MS)
        assert cache.kept(claims[0]) is not None
        await cache.fetched(claims[3], FAR_MS)
        assert [cache.kept(claim) is not None for claim in claims] == [
            True,
            False,
            True,
            True,
            False,
        ]
        assert len(cache) == 3


async def test_one_plan_is_kept_however_large_it_is() -> None:
    bench = Bench()
    claims = [await planned(bench, PLAIN, key=f"batches/b{n}/plan/1") for n in range(2)]
    cache = PromptCache(bench.store, SystemClock(), max_bytes=1)
    for claim in claims:
        await cache.fetched(claim, FAR_MS)
        assert cache.kept(claim) is not None
        assert len(cache) == 1


async def test_a_failed_read_of_pins_is_not_remembered() -> None:
    bench = Bench()
    pins = await planned(bench, PLAIN)
    plan = bench.store.objects.pop(PLAN)
    for _ in range(2):
        with pytest.raises(PinsError):
            await bench.cache.fetched(pins, FAR_MS)
    bench.store.objects[PLAN] = plan
    assert await bench.cache.fetched(pins, FAR_MS) is not None
