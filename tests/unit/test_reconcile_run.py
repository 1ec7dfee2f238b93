"""Reconciling a whole installation: batches, a real meter, and a fake of Stripe."""

from __future__ import annotations

from datetime import date

import pytest
from msgspec.structs import replace

from api.billing.reconcile.scope import Scope, scope_of
from schemas.records import BatchStatus, BillingCommandKind, SendState
from schemas.topics import BATCH_STATUS, METER_SEND, USAGE_RECORDED
from streams.adapters.meter_fake import Fault
from streams.domain.billing.reconcile.lines import LineFault
from streams.domain.billing.reconcile.sums import ALL_MODELS, Cause
from streams.ports.meter_sink import MeterEvent, SinkUnavailable
from tests.support.books import BooksWorld, Line, output_line, used
from tests.support.meter_world import usage

_LINES: list[Line] = [("m", used(100 + n, 20 + n % 7, n % 50, n % 5)) for n in range(60)]


async def _billed(**batches: list[Line]) -> BooksWorld:
    world = BooksWorld()
    for name, lines in (batches or {"batch_1": _LINES}).items():
        await world.batch(name, lines)
    await world.bill()
    return world


async def test_what_is_in_the_files_was_counted_sent_and_billed() -> None:
    several: list[Line] = [("small", used(5, 3)), ("large", used(7, 2, 4)), ("small", used(1, 1))]
    world = await _billed(batch_1=_LINES, batch_2=several)
    report = await world.reconcile()
    assert report.balanced
    assert report.batches == 2
    assert {e.account.model for e in report.entries} == {"m", "small", "large"}
    assert all(e.output == e.ledger == e.sent.confirmed for e in report.entries)
    assert report.sums is not None
    assert sum(checked.sum.found for checked in report.sums) == sum(
        entry.ledger or 0 for entry in report.entries
    )


async def test_a_line_of_an_output_file_that_says_otherwise_is_named() -> None:
    world = await _billed()
    batch = await world.batch("batch_2", _LINES)
    await world.bill()
    usages = [usage for _, usage in _LINES]
    usages[17] = replace(usages[17], input_tokens=usages[17].input_tokens + 1)
    await world.write_output(batch, usages)
    report = await world.reconcile()
    [difference] = report.differences
    assert (difference.cause, difference.account.batch_id) == (Cause.OUTPUT, "batch_2")
    [line] = report.lines["batch_2"]
    assert (line.fault, line.number, line.place) == (LineFault.OTHER_USAGE, 17, 18)
    assert line.output.input_tokens == line.recorded.input_tokens + 1


async def test_lines_that_are_missing_twice_there_unreadable_or_of_others_are_named() -> None:
    world = await _billed()
    key = "batches/batch_1/assembled/1"
    lines = world.store.objects[key].splitlines(keepends=True)
    lines[3:5] = [lines[3], lines[3], b"{}\n", output_line("other", 4, used(9))]
    await world.store.put(key, b"".join(lines)[:-10])
    found = (await world.reconcile()).lines["batch_1"]
    assert [(line.fault, line.number) for line in found] == [
        (LineFault.TWICE, 3),
        (LineFault.UNREADABLE, None),
        (LineFault.UNKNOWN, None),
        (LineFault.UNREADABLE, None),
        (LineFault.MISSING, 4),
        (LineFault.MISSING, 59),
    ]


async def test_what_waits_for_a_customer_is_a_difference() -> None:
    world = BooksWorld()
    world.meter.customers.clear()
    await world.batch("batch_1", [("m", used(10))])
    await world.bill()
    report = await world.reconcile()
    assert [d.cause for d in report.differences] == [Cause.PARKED]


async def test_what_stripe_has_not_answered_yet_is_on_its_way() -> None:
    world = BooksWorld()
    await world.batch("batch_1", [("m", used(10))])
    world.sink.fault = lambda: Fault.SERVER_ERROR
    world.meter.count_some()
    world.clock.advance(301)
    await world.meter.turn()
    for send in world.meter.published.values():
        await world.log.send(METER_SEND, send.identifier, send)
    world.clock.advance(3600)
    report = await world.reconcile(sink=False)
    assert report.balanced
    assert [e.sent.on_way for e in report.entries] == [10]


async def test_what_the_meter_never_saw_is_a_difference_once_it_must_have() -> None:
    world = BooksWorld()
    await world.batch("batch_1", [("m", used(10))])
    assert (await world.reconcile()).balanced
    world.clock.advance(3600)
    report = await world.reconcile()
    assert [(d.cause, d.expected, d.found) for d in report.differences] == [(Cause.NOT_SENT, 10, 0)]


async def test_a_sum_of_stripe_s_that_differs_is_narrowed_down_to_its_minute() -> None:
    world = BooksWorld()
    for number in range(3):
        await world.batch(f"batch_{number}", [("m", used(10))])
        await world.bill()
    odd = world.clock.now_ms() - 2 * 3600 * 1000 + 60_000
    name = world.sink.events[0].event_name
    await world.sink.send(
        MeterEvent(identifier="x", event_name=name, customer="cus_ada", tokens=7, at_ms=odd)
    )
    report = await world.reconcile()
    assert report.differences == []
    assert not report.balanced
    assert report.sums is not None
    [checked] = report.sums
    assert (checked.sum.expected.least, checked.sum.found) == (30, 37)
    [minute] = checked.minutes
    assert minute.range.minutes == 1
    assert minute.range.start_ms <= odd < minute.range.end_ms
    assert (minute.expected.least, minute.found) == (0, 7)


async def test_an_event_that_stripe_lost_is_found() -> None:
    world = await _billed()
    lost = world.sink.events.pop()
    sums = (await world.reconcile()).sums
    assert sums is not None
    [found] = [minute for checked in sums for minute in checked.minutes]
    assert [send.identifier for send in found.sends] == [lost.identifier]


async def test_a_meter_that_stripe_does_not_have_is_said() -> None:
    world = await _billed(batch_1=[("m", used(10))])
    world.sink.meters = set()
    sums = (await world.reconcile()).sums
    assert sums is not None
    [checked] = sums
    assert (checked.sum.refused, checked.sum.agrees) == ("no_meter", False)


async def test_stripe_is_asked_again_when_it_does_not_answer_and_in_the_end_given_up() -> None:
    world = await _billed(batch_1=[("m", used(10))])
    faults = iter([Fault.RATE_LIMITED, Fault.TIMEOUT])
    world.sink.fault = lambda: next(faults, Fault.NONE)
    assert (await world.reconcile()).balanced
    world.sink.fault = lambda: Fault.SERVER_ERROR
    with pytest.raises(SinkUnavailable):
        await world.reconcile()


async def test_without_a_sink_its_column_is_absent() -> None:
    world = await _billed()
    assert (await world.reconcile(sink=False)).sums is None


async def test_an_output_file_that_is_gone_is_said_to_be() -> None:
    world = await _billed()
    await world.store.delete("batches/batch_1/assembled/1")
    report = await world.reconcile()
    assert report.balanced
    assert report.without_output == ["batch_1"]
    assert {entry.output for entry in report.entries} == {None}


async def test_where_nobody_says_which_models_lines_ran_on_they_are_compared_together() -> None:
    world = await _billed(batch_1=[("small", used(5, 3)), ("large", used(7, 2, 4))])
    for place in [place for place in world.log.records if place[0] == USAGE_RECORDED.name]:
        # Kafka has removed it, 90 days later.
        del world.log.records[place]
    report = await world.reconcile()
    assert report.balanced
    assert {entry.account.model for entry in report.entries} == {ALL_MODELS}


async def test_a_batch_that_runs_is_not_compared() -> None:
    world = await _billed()
    batch = await world.batch("batch_2", [("m", used(10))])
    running = replace(batch, revision=10, status=BatchStatus.IN_PROGRESS, completed_at_ms=None)
    await world.log.send(BATCH_STATUS, "batch_2", running)
    report = await world.reconcile()
    assert (report.batches, report.running) == (1, ["batch_2"])


async def test_a_day_or_a_batch_or_a_tenant_is_compared_alone() -> None:
    world = BooksWorld()
    await world.batch("batch_1", [("m", used(10))])
    world.clock.advance(86_400)
    await world.batch("batch_2", [("m", used(20))])
    await world.bill()
    now_ms = world.clock.now_ms()

    async def tokens(scope: Scope) -> int:
        report = await world.reconcile(scope)
        assert report.balanced
        return report.tokens

    day = date(2023, 11, 14)
    assert await tokens(scope_of(None, day, None, now_ms)) == 10
    assert await tokens(scope_of("batch_2", None, None, now_ms)) == 20
    assert await tokens(scope_of(None, None, "ada", now_ms)) == 30
    assert await tokens(scope_of(None, None, "bo", now_ms)) == 0
    assert await tokens(scope_of(None, None, None, now_ms + 40 * 86_400_000)) == 0


async def test_the_newest_state_of_a_send_counts_wherever_it_stands_in_the_log() -> None:
    world = BooksWorld()
    await world.batch("batch_1", [("m", used(10))])
    [send] = await world.bill()
    old = replace(send, watermark=0, state=SendState.PARKED)
    await world.log.send(METER_SEND, send.identifier, old)
    assert (await world.reconcile()).balanced


async def test_what_is_taken_back_is_explained_and_no_longer_billed() -> None:
    world = await _billed()
    sends = list(world.meter.published.values())
    for send in sends[:2]:
        world.meter.order(send.identifier, BillingCommandKind.CANCEL)
    await world.bill()
    report = await world.reconcile()
    assert report.balanced
    assert sum(e.sent.cancelled for e in report.entries) == sum(s.tokens for s in sends[:2])
    world.sink.cancelled.clear()
    assert not (await world.reconcile()).balanced


async def test_of_real_time_requests_what_waits_and_what_is_billed_is_compared() -> None:
    world = BooksWorld()
    for flag in ("", "absurd"):
        now_ms = world.clock.now_ms()
        world.meter.log.append(usage("ada", f"rt{flag}", [0], now_ms, window="", flag=flag))
    await world.bill()
    report = await world.reconcile()
    assert {d.cause for d in report.differences} == {Cause.PARKED}
    assert {d.account.batch_id for d in report.differences} == {"rtabsurd"}
    assert {(entry.output, entry.ledger) for entry in report.entries} == {(None, None)}
    assert report.sums
    assert all(checked.sum.agrees for checked in report.sums)


async def test_another_batch_s_amount_in_the_same_minute_counts_at_stripe() -> None:
    world = await _billed(batch_1=[("m", used(10))], batch_2=[("m", used(20))])
    report = await world.reconcile(Scope(batch_id="batch_1"))
    assert report.balanced
    [checked] = report.sums or []
    assert (checked.sum.expected.least, checked.sum.found) == (30, 30)
    assert report.tokens == 10


async def test_an_amount_that_has_another_customer_by_now_is_not_expected_at_the_first() -> None:
    world = await _billed(batch_1=[("m", used(10))])
    [send] = world.meter.published.values()
    early = replace(send, identifier="moved", watermark=1, tokens=5)
    late = replace(early, watermark=2, customer="cus_bo", state=SendState.SENT)
    for record in (early, late):
        await world.log.send(METER_SEND, "moved", record)
    report = await world.reconcile()
    at_first = [c for c in report.sums or [] if c.sum.range.customer == "cus_ada"]
    assert [c.sum.expected.least for c in at_first] == [10]


async def test_usage_is_read_from_when_the_first_batch_that_is_meant_was_created() -> None:
    world = BooksWorld()
    await world.batch("batch_1", [("small", used(5, 3)), ("large", used(7, 2, 4))])
    world.clock.advance(7200)
    await world.batch("batch_2", [("small", used(5, 3)), ("large", used(7, 2, 4))])
    reader = world.log.reader([USAGE_RECORDED])
    await reader.start()
    await reader.go_to(world.clock.now_ms() - 3_600_000)
    assert len(await reader.poll()) == 1
    report = await world.reconcile(Scope(batch_id="batch_2"))
    assert {entry.account.model for entry in report.entries} == {"small", "large"}
