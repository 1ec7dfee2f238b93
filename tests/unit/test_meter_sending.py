"""When and to whom usage is sent: windows, customers, prices, outages, and what comes late."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise

from schemas.records import MeterSend, SendState, Usage
from streams.adapters.meter_fake import Fault
from streams.domain.billing.meter.ledger import LEDGER_KEPT_MS
from streams.domain.billing.prices.book import PriceBook, parse_prices
from tests.support.meter_world import World, nothing, usage

_DAY_S = 86_400
_BATCH_INPUT = "backhaul_batch_input_tokens"


def _world(book: PriceBook | None = None, **customers: str) -> World:
    world = World(book=book)
    world.customers |= customers or {"ada": "cus_ada"}
    return world


def _input_only(line: int) -> Usage:
    return Usage(input_tokens=line + 1)


def _without_reasoning(line: int) -> Usage:
    return Usage(input_tokens=100 + line, cached_tokens=line % 50, output_tokens=20)


def _states(world: World) -> dict[tuple[SendState, str], int]:
    found: dict[tuple[SendState, str], int] = {}
    for send in world.published.values():
        key = (send.state, send.reason)
        found[key] = found.get(key, 0) + send.tokens
    return found


async def test_fifty_thousand_lines_that_take_a_day_are_billed_with_a_hundred_calls() -> None:
    world = _world()
    for first in range(0, 50_000, 50):
        lines, now_ms = range(first, first + 50), world.clock.now_ms()
        world.log.append(usage("ada", "batch_1", lines, now_ms, of=_without_reasoning))
        world.count_some()
        world.clock.advance(_DAY_S / 1000)
        await world.turn()
    await world.settle()
    assert world.sink.totals() == world.expected()
    assert len({e.event_name for e in world.sink.events}) == 3
    assert len(world.sink.calls) <= 100


async def test_fifty_thousand_lines_in_minutes_are_billed_minutes_later_in_a_dozen_calls() -> None:
    world = _world()
    for first in range(0, 50_000, 500):
        world.log.append(usage("ada", "batch_1", range(first, first + 500), world.clock.now_ms()))
        world.count_some()
        world.clock.advance(6)
        await world.turn()
    began_ms = world.clock.now_ms()
    await world.settle(step_s=10)
    assert len(world.sink.calls) <= 12
    assert world.clock.now_ms() - began_ms <= 150_000


async def test_usage_of_a_tenant_without_a_customer_waits_and_is_sent_when_there_is_one() -> None:
    world = _world(bo="cus_bo")
    world.log.append(usage("ada", "batch_1", range(10), world.clock.now_ms()))
    await world.settle()
    assert world.sink.events == []
    assert {state for state, _ in _states(world)} == {SendState.PARKED}
    world.customers["ada"] = "cus_ada"
    await world.sender.review(frozenset({"ada"}))
    await world.settle()
    assert world.sink.totals() == world.expected()


async def test_two_reviews_at_once_send_what_was_parked_once() -> None:
    world = _world(bo="cus_bo")
    world.log.append(usage("ada", "batch_1", range(10), world.clock.now_ms()))
    await world.settle()
    world.customers["ada"] = "cus_ada"
    world.meanwhile = lambda _: asyncio.sleep(0.02)
    slow = asyncio.create_task(world.sender.review())
    await asyncio.sleep(0)
    world.meanwhile = nothing
    await world.sender.review()
    await world.turn()
    await slow
    await world.settle()
    assert len(world.sink.calls) == len(world.published)
    assert world.sink.totals() == world.expected()


async def test_a_model_that_lost_its_price_is_not_billed_until_it_has_one() -> None:
    prices = {"currency": "usd", "models": {"other": {"input": "1", "output": "2"}}}
    world = _world(parse_prices(prices))
    world.log.append(usage("ada", "batch_1", range(10), world.clock.now_ms()))
    await world.settle()
    assert {reason for _, reason in _states(world)} == {"no_price"}
    prices["models"] = {"m": {"input": "1", "output": "2"}}
    world.book = parse_prices(prices)
    world.clock.advance(601)
    await world.settle()
    assert world.sink.totals() == world.expected()


async def test_a_batch_keeps_the_meters_of_the_day_it_was_created() -> None:
    rates = [
        {"input": "1", "output": "1"},
        {"valid_from": "2023-11-15", "input": "2", "output": "2"},
    ]
    world = _world(parse_prices({"currency": "usd", "models": {"m": rates}}))
    created_ms = world.clock.now_ms()
    for first in (0, 10):
        record = usage(
            "ada",
            "batch_1",
            range(first, first + 10),
            world.clock.now_ms(),
            created_at_ms=created_ms,
            of=_input_only,
        )
        world.log.append(record)
        await world.settle()
        world.clock.advance(2 * _DAY_S)
    world.log.append(usage("ada", "batch_2", range(5), world.clock.now_ms(), of=_input_only))
    await world.settle()
    assert world.sink.totals() == {
        ("cus_ada", f"{_BATCH_INPUT}_m_24h_1970-01-01"): 210,
        ("cus_ada", f"{_BATCH_INPUT}_m_24h_2023-11-15"): 15,
    }


async def test_absurd_usage_is_shown_and_not_billed() -> None:
    world = _world()
    now_ms = world.clock.now_ms()
    world.log.append(usage("ada", "batch_1", range(5), now_ms, of=_input_only))
    world.log.append(usage("ada", "batch_1", range(5, 9), now_ms, of=_input_only, flag="absurd"))
    negative = usage("ada", "batch_1", [9], now_ms, of=lambda _: Usage(input_tokens=-5))
    world.log.append(negative)
    await world.settle()
    assert sum(world.sink.totals().values()) == 15
    assert _states(world)[SendState.PARKED, "usage_flagged"] == 6 + 7 + 8 + 9


async def test_an_archived_meter_holds_its_usage_until_it_is_back() -> None:
    world = _world()
    world.sink.archived.add(_BATCH_INPUT)
    world.log.append(usage("ada", "batch_1", range(5), world.clock.now_ms(), of=_input_only))
    await world.settle()
    assert _states(world) == {(SendState.PARKED, "archived_meter"): 15}
    world.sink.archived.clear()
    world.clock.advance(601)
    await world.settle()
    assert world.sink.totals() == world.expected()


async def test_what_is_not_known_to_have_arrived_after_a_day_is_looked_for() -> None:
    for fault, arrived in ((Fault.TIMEOUT_AFTER, True), (Fault.TIMEOUT, False)):
        world = _world()
        world.log.append(usage("ada", "batch_1", range(5), world.clock.now_ms(), of=_input_only))
        world.count_some()
        world.clock.advance(301)
        world.sink.fault = _once(fault)
        await world.turn()
        assert bool(world.sink.events) is arrived
        await world.commit()
        world.die_and_start()
        world.clock.advance(25 * 3600)
        await world.settle()
        assert world.sink.totals() == world.expected()


async def test_what_is_too_old_is_parked_and_never_dropped() -> None:
    world = _world()
    world.log.append(usage("ada", "batch_1", range(5), world.clock.now_ms(), of=_input_only))
    world.clock.advance(36 * _DAY_S)
    await world.settle()
    assert world.sink.events == []
    assert _states(world) == {(SendState.PARKED, "too_old"): 15}


async def test_a_replay_36_days_later_changes_nothing() -> None:
    world = _world()
    world.log.append(usage("ada", "batch_1", range(600), world.clock.now_ms()))
    await world.settle()
    calls, states = len(world.sink.calls), _states(world)
    for days in (1, 36, 97 - 37):
        world.clock.advance(days * _DAY_S + 3600)
        await world.books.delete_old(world.clock.now_ms())
        await world.commit()
        world.committed = 0
        world.die_and_start()
        await world.settle()
    assert len(world.sink.calls) == calls
    assert world.sink.totals() == world.expected()
    assert _states(world) == states, "nothing waits to be released and billed again"


async def test_the_ledger_leaves_the_tables_when_no_replay_can_touch_it() -> None:
    world = _world()
    world.log.append(usage("ada", "batch_1", range(600), world.clock.now_ms()))
    await world.settle()
    world.clock.advance(LEDGER_KEPT_MS / 1000 + 3600)
    await world.books.delete_old(world.clock.now_ms())
    assert not world.tables["chunks"].data
    assert not world.tables["sends"].data
    assert not world.books.tabs


async def test_after_a_day_without_the_sink_all_is_sent_at_the_limit_and_in_order() -> None:
    world = World()
    world.customers |= {f"t{n}": f"cus_{n}" for n in range(5)}
    world.calls_per_s = 10.0
    world.start()
    world.sink.fault = lambda: Fault.SERVER_ERROR
    for hour in range(24):
        for n in range(5):
            batch = f"batch_{n}_{hour}"
            world.log.append(usage(f"t{n}", batch, range(3), world.clock.now_ms()))
            world.count_some()
        for _ in range(6):
            world.clock.advance(600)
            await world.turn()
    failed = len(world.sink.calls)
    assert world.sink.events == []
    await world.settle()
    assert world.sink.totals() == world.expected()
    for n in range(5):
        times = [e.at_ms for e in world.sink.events if e.customer == f"cus_{n}"]
        assert times == sorted(times)
    calls = world.sink.calls[failed:]
    assert all(later - one >= 99 for one, later in pairwise(calls))


async def test_a_batch_of_another_tenant_with_the_same_id_is_its_own() -> None:
    world = _world(ada="cus_ada", bo="cus_bo")
    for tenant in ("ada", "bo"):
        world.log.append(usage(tenant, "batch_1", range(7), world.clock.now_ms()))
    await world.settle()
    assert world.sink.totals() == world.expected()
    assert {customer for customer, _ in world.sink.totals()} == {"cus_ada", "cus_bo"}


async def test_real_time_usage_has_meters_of_its_own() -> None:
    world = _world()
    record = usage("ada", "rt", range(5), world.clock.now_ms(), window="", of=_input_only)
    world.log.append(record)
    await world.settle()
    assert world.sink.totals() == {("cus_ada", "backhaul_realtime_input_tokens"): 15}


async def test_each_send_is_told_with_its_end() -> None:
    world = _world()
    world.log.append(usage("ada", "batch_1", range(5), world.clock.now_ms(), of=_input_only))
    await world.settle()
    [send] = world.published.values()
    assert isinstance(send, MeterSend)
    assert (send.state, send.customer, send.tokens) == (SendState.CONFIRMED, "cus_ada", 15)


def _once(fault: Fault) -> _Once:
    return _Once(iter([fault]))


class _Once:
    """A fault for the first call only."""

    def __init__(self, faults: Iterator[Fault]) -> None:
        self._faults = faults

    def __call__(self) -> Fault:
        return next(self._faults, Fault.NONE)
