"""Operators take back what was billed, and release or write off what waits for them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from schemas.records import BillingCommandKind, MeterSend, Record, SendState, Usage
from streams.adapters.meter_fake import Fault
from streams.domain.billing.meter.decisions import CANCELLABLE_MS, Refusal
from streams.domain.billing.meter.send import UNCLEAR
from streams.ports.meter_sink import MeterEvent
from tests.support.meter_world import Chaos, Killed, World, nothing, usage

_HOUR_S = 3600
_DAY_S = 86_400
CANCEL, SEND = BillingCommandKind.CANCEL, BillingCommandKind.SEND
WRITE_OFF, ARRIVED = BillingCommandKind.WRITE_OFF, BillingCommandKind.ARRIVED


def _input_only(line: int) -> Usage:
    return Usage(input_tokens=line + 1)


async def _world(*, flag: str = "", customer: str | None = "cus_ada") -> World:
    """One amount of 15 tokens, as far as it comes by itself."""
    world = World()
    if customer is not None:
        world.customers["ada"] = customer
    now_ms = world.clock.now_ms()
    world.log.append(usage("ada", "batch_1", range(5), now_ms, of=_input_only, flag=flag))
    await world.settle()
    return world


async def _too_old() -> World:
    world = World()
    world.customers["ada"] = "cus_ada"
    world.log.append(usage("ada", "batch_1", range(5), world.clock.now_ms(), of=_input_only))
    world.clock.advance(36 * _DAY_S)
    await world.settle()
    return world


async def _unclear(*, arrived: bool) -> World:
    """An amount that may have arrived, in a minute whose sum says neither."""
    world = World()
    world.customers["ada"] = "cus_ada"
    world.log.append(usage("ada", "batch_1", range(5), world.clock.now_ms(), of=_input_only))
    world.count_some()
    world.clock.advance(301)
    world.sink.fault = lambda: Fault.TIMEOUT_AFTER if arrived else Fault.TIMEOUT
    await world.turn()
    world.sink.fault = lambda: Fault.NONE
    [send] = world.books.open.values()
    odd = MeterEvent(
        identifier="odd",
        event_name=send.event_name or "",
        customer="cus_ada",
        tokens=4,
        at_ms=send.at_ms,
    )
    await world.sink.send(odd)
    world.clock.advance(25 * _HOUR_S)
    await world.settle()
    assert _send(world).reason == UNCLEAR
    return world


def _send(world: World) -> MeterSend:
    [send] = world.published.values()
    return send


async def _order(world: World, kind: BillingCommandKind) -> str:
    """What became of it: why it was refused, or nothing."""
    command = world.order(_send(world).identifier, kind)
    await world.settle()
    made = world.decisions[command]
    assert made.done is (made.refusal == "")
    assert made.tokens == 15
    return made.refusal


def _billed(world: World) -> int:
    return sum(world.sink.totals().values())


async def test_what_was_billed_today_is_taken_back_and_says_who_wanted_it_and_why() -> None:
    world = await _world()
    assert await _order(world, CANCEL) == ""
    assert _billed(world) == 0
    send = _send(world)
    assert send.state is SendState.CANCELLED
    assert send.command is not None
    assert (send.command.by, send.command.reason) == ("ops", "the customer asked for it")
    assert await _order(world, CANCEL) == Refusal.NOT_CONFIRMED
    assert _send(world).command == send.command


async def test_what_was_taken_back_is_not_billed_again_with_what_comes_later() -> None:
    world = await _world()
    await _order(world, CANCEL)
    world.log.append(usage("ada", "batch_1", [5], world.clock.now_ms(), of=_input_only))
    await world.settle()
    assert _billed(world) == 6


async def test_after_a_day_nothing_is_taken_back() -> None:
    world = await _world()
    first_ms = _send(world).first_sent_at_ms or 0
    world.clock.advance((first_ms + CANCELLABLE_MS - world.clock.now_ms()) / 1000)
    assert await _order(world, CANCEL) == Refusal.TOO_LATE
    assert _billed(world) == 15


async def test_taking_back_is_repeated_until_the_sink_answers() -> None:
    world = await _world()
    command = world.order(_send(world).identifier, CANCEL)
    world.sink.fault = lambda: Fault.SERVER_ERROR
    await world.obey_one()
    await world.turn()
    assert _send(world).state is SendState.CANCELLING
    assert command not in world.decisions
    await world.commit()
    world.die_and_start()
    await world.settle()
    assert world.decisions[command].done
    assert _billed(world) == 0


@pytest.mark.parametrize(
    ("fault", "billed", "done"), [(Fault.TIMEOUT, 15, False), (Fault.ANSWER_LOST, 0, True)]
)
async def test_a_sink_that_is_away_until_it_is_too_late_is_asked_for_its_sums(
    fault: Fault, billed: int, done: bool
) -> None:
    world = await _world()
    command = world.order(_send(world).identifier, CANCEL)
    world.sink.fault = lambda: fault
    await world.obey_one()
    await world.turn()
    world.clock.advance(25 * _HOUR_S)
    await world.settle()
    assert world.decisions[command].done is done
    assert _billed(world) == billed
    assert _send(world).state is (SendState.CANCELLED if done else SendState.CONFIRMED)


async def test_after_a_restart_what_may_have_been_taken_back_goes_before_all_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await _world()
    first = _send(world)
    world.order(first.identifier, CANCEL)
    world.log.append(usage("ada", "batch_2", range(4), first.at_ms - 1000, of=_input_only))
    world.count_some()
    world.sink.fault = lambda: Fault.SERVER_ERROR
    await world.obey_one()
    world.clock.advance(301)
    await world.turn()
    await world.commit()
    world.die_and_start()
    cancel, asked = world.sink.cancel, []

    async def seen(identifier: str, event_name: str) -> None:
        asked.append(len(world.sink.events))
        await cancel(identifier, event_name)

    monkeypatch.setattr(world.sink, "cancel", seen)
    await world.settle()
    assert asked == [1], "nothing else was sent before"
    assert _billed(world) == 10


async def test_sums_that_lag_are_not_asked_whether_something_was_taken_back() -> None:
    world = await _world()
    world.sink.sums_lag_s = 900.0
    world.sink.events.clear()
    world.sink.forget()
    assert await _order(world, CANCEL) == "invalid_request"
    assert _send(world).state is SendState.CONFIRMED


async def test_a_command_is_no_larger_than_it_may_be() -> None:
    world = await _world()
    world.order(_send(world).identifier, CANCEL)
    world.commands[0] = replace(world.commands[0], reason="x" * 10_000, by="y" * 10_000)
    await world.settle()
    command = _send(world).command
    assert command is not None
    assert (len(command.reason), len(command.by)) == (500, 100)


async def test_absurd_usage_is_billed_once_somebody_has_looked() -> None:
    world = await _world(flag="absurd")
    assert _billed(world) == 0
    assert await _order(world, SEND) == ""
    assert (_billed(world), _send(world).state) == (15, SendState.CONFIRMED)
    assert await _order(world, SEND) == Refusal.NOT_WAITING


async def test_what_is_too_old_is_billed_as_of_its_release() -> None:
    world = await _too_old()
    now_ms = world.clock.now_ms()
    assert await _order(world, SEND) == ""
    assert _billed(world) == 15
    assert world.sink.events[0].at_ms == now_ms


async def test_what_was_refused_for_good_can_be_tried_again() -> None:
    world = await _world()
    refused = replace(_send(world), state=SendState.REJECTED, reason="invalid_request")
    world.books.write(refused, world.clock.now_ms())
    world.sink.events.clear()
    world.clock.advance(25 * _HOUR_S)
    assert await _order(world, SEND) == ""
    assert _billed(world) == 15


async def test_what_waits_can_be_written_off_and_then_nothing_sends_it() -> None:
    for world in (await _world(flag="absurd"), await _world(customer=None), await _too_old()):
        reason = _send(world).reason
        assert await _order(world, WRITE_OFF) == ""
        world.customers["ada"] = "cus_ada"
        world.clock.advance(_HOUR_S)
        await world.sender.review()
        await world.settle()
        assert _billed(world) == 0
        assert (_send(world).state, _send(world).reason) == (SendState.WRITTEN_OFF, reason)


async def test_what_goes_on_by_itself_needs_no_release() -> None:
    world = await _world(customer=None)
    assert await _order(world, SEND) == Refusal.GOES_ON_BY_ITSELF


async def test_what_was_looked_up_at_the_sink_is_taken_for_billed() -> None:
    world = await _unclear(arrived=True)
    assert await _order(world, ARRIVED) == ""
    assert _send(world).state is SendState.CONFIRMED
    assert _billed(world) == 15 + 4
    assert await _order(world, ARRIVED) == Refusal.NOT_UNCLEAR


async def test_what_was_not_found_at_the_sink_is_sent_again() -> None:
    world = await _unclear(arrived=False)
    assert await _order(world, SEND) == ""
    assert _billed(world) == 15 + 4


async def test_nobody_decides_about_another_tenant_s_amount_or_one_that_is_not_there() -> None:
    world = await _world()
    mine = _send(world).identifier
    for command in (world.order(mine, CANCEL, "bo"), world.order("nothing", CANCEL)):
        await world.settle()
        made = world.decisions[command]
        assert (made.done, made.refusal, made.tokens) == (False, Refusal.UNKNOWN_AMOUNT, 0)
    assert _billed(world) == 15


async def test_a_command_that_is_unknown_here_changes_nothing() -> None:
    world = await _world()
    assert await _order(world, BillingCommandKind.UNKNOWN) == Refusal.UNKNOWN_COMMAND
    assert _send(world).state is SendState.CONFIRMED


async def test_a_command_that_was_refused_is_not_obeyed_at_a_replay() -> None:
    world = await _world(customer=None)
    assert await _order(world, CANCEL) == Refusal.NOT_CONFIRMED
    world.customers["ada"] = "cus_ada"
    await world.sender.review()
    await world.settle()
    await world.commit()
    world.commands_committed = 0
    world.die_and_start()
    await world.settle()
    assert (_billed(world), _send(world).state) == (15, SendState.CONFIRMED)


async def _refused_meanwhile(at: Callable[[MeterSend, Record | None], bool]) -> World:
    """An amount that is being sent; a CANCEL is refused when something is awaited in this state."""
    world = World()
    world.customers["ada"] = "cus_ada"
    world.log.append(usage("ada", "batch_1", range(5), world.clock.now_ms(), of=_input_only))
    world.count_some()
    world.clock.advance(301)
    await world.sender.close_windows()
    identifier = _send(world).identifier
    world.order(identifier, CANCEL)

    async def meanwhile(record: Record | None) -> None:
        row = world.books.send(identifier)
        if row is not None and at(row, record):
            world.meanwhile = nothing
            assert await world.obey_one()

    world.meanwhile = meanwhile
    await world.turn()
    assert world.meanwhile is nothing, "the command came"
    assert world.decisions["cmd_0"].refusal == Refusal.NOT_CONFIRMED
    return world


def _told_as(state: SendState) -> Callable[[MeterSend, Record | None], bool]:
    return lambda _, record: isinstance(record, MeterSend) and record.state is state


@pytest.mark.parametrize(
    "at",
    [
        pytest.param(_told_as(SendState.CONFIRMED), id="while it is told that it arrived"),
        pytest.param(lambda row, _: row.state is SendState.PENDING, id="before it is tried"),
        pytest.param(lambda row, _: row.state is SendState.SENT, id="while it is sent"),
    ],
)
async def test_what_was_refused_while_its_lane_was_at_it_stays_refused_after_a_crash(
    at: Callable[[MeterSend, Record | None], bool],
) -> None:
    world = await _refused_meanwhile(at)
    row = world.books.send(_send(world).identifier)
    assert row is not None
    assert row.watermark > _send(world).watermark, "recovery keeps the row, whatever is read last"
    await world.flush()
    world.die_and_start()
    assert world.commands_committed == 0
    await world.settle()
    assert (_billed(world), _send(world).state) == (15, SendState.CONFIRMED)
    assert {made.refusal for made in world.told} == {Refusal.NOT_CONFIRMED}


async def test_what_was_refused_while_the_sums_were_looked_at_stays_refused_after_a_crash() -> None:
    world = await _looked_for_while_a_command_comes()
    await world.flush()
    world.die_and_start()
    await world.settle()
    assert (_billed(world), _send(world).state) == (15, SendState.CONFIRMED)
    assert {made.refusal for made in world.told} == {Refusal.NOT_CONFIRMED}


async def _looked_for_while_a_command_comes() -> World:
    """An amount that has not arrived, a day later; the refusal falls before it is begun again."""
    world = await _unsent()
    world.clock.advance(25 * _HOUR_S)
    world.order(_send(world).identifier, CANCEL)
    total = world.sink.total

    async def meanwhile(_: Record | None) -> None:
        world.meanwhile = nothing
        assert await world.obey_one()

    async def looked(customer: str, event_name: str, start_ms: int, end_ms: int) -> int:
        world.meanwhile = meanwhile
        return await total(customer, event_name, start_ms, end_ms)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.sink, "total", looked)
        await world.turn()
    assert world.decisions["cmd_0"].refusal == Refusal.NOT_CONFIRMED
    return world


async def _unsent() -> World:
    world = World()
    world.customers["ada"] = "cus_ada"
    world.log.append(usage("ada", "batch_1", range(5), world.clock.now_ms(), of=_input_only))
    world.count_some()
    world.clock.advance(301)
    world.sink.fault = lambda: Fault.TIMEOUT
    await world.turn()
    world.sink.fault = lambda: Fault.NONE
    return world


@pytest.mark.parametrize("kind", [CANCEL, WRITE_OFF])
async def test_what_was_told_is_so_after_a_crash_that_comes_right_then(
    kind: BillingCommandKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await _world(customer=None)
    await world.flush()
    command = world.order(_send(world).identifier, kind)

    def dies(step: str) -> None:
        if step in ("meter.refusal_told", "meter.decision_told"):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("streams.meter.desk.reach", dies)
        with pytest.raises(Killed):
            await world.obey_one()
    told = world.decisions[command]
    for table in world.tables.values():
        table.unflushed.clear()
    world.die_and_start()
    # The next process may send before it reads the command again.
    world.customers["ada"] = "cus_ada"
    await world.sender.review()
    await world.turn()
    await world.settle()
    assert replace(world.decisions[command], at_ms=told.at_ms) == told
    assert _billed(world) == (0 if told.done else 15)


async def test_a_refusal_that_a_crash_kept_from_being_told_is_told_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await _world(customer=None)
    command = world.order(_send(world).identifier, CANCEL)

    def dies(step: str) -> None:
        if step == "meter.decision_durable":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("streams.meter.desk.reach", dies)
        with pytest.raises(Killed):
            await world.obey_one()
    world.die_and_start()
    world.customers["ada"] = "cus_ada"
    await world.sender.review()
    await world.turn()
    await world.settle()
    assert world.decisions[command].refusal == Refusal.NOT_CONFIRMED
    assert _billed(world) == 15


async def test_whoever_lost_the_partition_meanwhile_tells_nothing() -> None:
    world = await _world()
    given = world.order(_send(world).identifier, WRITE_OFF)
    before = world.books.send(_send(world).identifier)
    assert not await world.desk.obey(world.commands[0], 0, lambda: False)
    assert world.books.send(_send(world).identifier) == before
    alive = iter([True, False])
    assert not await world.desk.obey(world.commands[0], 0, lambda: next(alive))
    assert not world.told
    await world.settle()
    assert world.decisions[given].refusal == Refusal.NOT_WAITING


async def test_what_is_to_be_taken_back_counts_while_another_one_is_looked_for() -> None:
    world = await _world()
    first = _send(world).identifier
    world.log.append(usage("ada", "batch_2", range(4), _send(world).at_ms, of=_input_only))
    world.count_some()
    world.clock.advance(301)
    world.sink.fault = lambda: Fault.TIMEOUT_AFTER
    await world.turn()
    world.order(first, CANCEL)
    await world.obey_one()
    world.clock.advance(25 * _HOUR_S)
    await world.settle()
    assert {send.state for send in world.published.values()} == {SendState.CONFIRMED}
    assert _billed(world) == 15 + 10


async def test_a_replay_of_everything_calls_nobody_and_tells_the_same() -> None:
    world = await _world(flag="absurd")
    await _order(world, SEND)
    await _order(world, CANCEL)
    calls, told, decided = len(world.sink.calls), dict(world.published), dict(world.decisions)
    await world.commit()
    world.committed = world.commands_committed = 0
    world.die_and_start()
    await world.settle()
    assert len(world.sink.calls) == calls
    assert (world.published, world.decisions) == (told, decided)


# -- and whatever dies meanwhile -------------------------------------------------------------

_DONE: Counter[str] = Counter()
_KINDS = (CANCEL, CANCEL, CANCEL, SEND, WRITE_OFF)
#: Of an amount that isn't there no row can keep the answer, and what the sink won't the lane tells.
_STAYS = frozenset(Refusal) - {Refusal.UNKNOWN_AMOUNT}


async def _obey_meanwhile(world: World) -> None:
    for _ in range(world.random.randrange(30)):
        await asyncio.sleep(0)
    while await world.obey_one():
        pass


async def _live(world: World, chaos: Chaos) -> None:
    for number in range(4):
        flag = "absurd" if number == 1 else ""
        lines, at_ms = range(40 * number), world.clock.now_ms()
        world.log.append(usage("ada", f"batch_{number}", lines, at_ms, flag=flag))
    for _ in range(150):
        match world.random.randrange(8):
            case 0:
                await chaos.survive(world.count_some)
            case 2 if world.published and len(world.commands) < 40:
                known = world.random.choice(sorted(world.published))
                world.order(known, world.random.choice(_KINDS))
            case 1:
                await chaos.survive(world.obey_one)
            case 3:
                # What is about to be sent is decided about meanwhile.
                for send in world.to_send()[:1]:
                    world.order(send.identifier, CANCEL)
                await chaos.survive_both(world.turn(), _obey_meanwhile(world))
            case 4:
                await chaos.survive(world.commit)
            case 5:
                world.obeyed = world.random.randint(0, world.obeyed)
            case _:
                world.clock.advance(world.random.choice([1, 30, 120, 400, 3000]))
                await chaos.survive(world.turn)


@pytest.mark.parametrize("seed", range(60))
async def test_the_bill_is_what_the_books_say_after_all_decisions_and_faults(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(seed)
    world.customers["ada"] = "cus_ada"
    chaos = Chaos(world, kill_share=0.15)
    chaos.arm(monkeypatch)
    world.meanwhile = world.turns_for_others
    await _live(world, chaos)
    world.meanwhile = nothing
    world.committed = world.commands_committed = 0
    world.die_and_start()
    await world.settle()
    sends = [row for _, row in world.tables["sends"].items() if isinstance(row, MeterSend)]
    billed: Counter[tuple[str, str]] = Counter()
    used: Counter[bool] = Counter()
    for send in sends:
        used[send.flagged] += send.tokens
        if send.state is SendState.CONFIRMED:
            billed[send.customer or "", send.event_name or ""] += send.tokens
        told = world.published[send.identifier]
        assert (told.state, told.command) == (send.state, send.command)
    assert {k: n for k, n in world.sink.totals().items() if n} == dict(billed)
    for flagged in (False, True):
        assert used[flagged] == sum(world.expected(flagged=flagged).values())
    assert set(world.decisions) == {command.command_id for command in world.commands}
    for made in world.told:
        if made.refusal in _STAYS:
            assert world.decisions[made.command.command_id].refusal == made.refusal
    _DONE.update(chaos.killed_at)
    _DONE.update(f"{made.command.kind} {made.done}" for made in world.decisions.values())


def test_that_killed_at_every_step_of_a_decision() -> None:
    steps = {"meter.decided", "meter.decision_told", "meter.refusal_told", "meter.cancelled"}
    steps |= {"meter.end_published", "cancel True", "send True", "write_off True", "cancel False"}
    assert steps <= set(_DONE), steps - set(_DONE)
