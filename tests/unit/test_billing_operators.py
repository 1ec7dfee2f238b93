"""What operators set and see of billing: customers of tenants, and what became of amounts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from api.accounts.keys import InvalidKeyName, create_key
from api.billing.customers import (
    InvalidCustomer,
    list_customers,
    read_status,
    set_customer,
    unset_customer,
)
from api.cli import billing
from api.log_fake import FakeLog
from schemas.records import BillingReport, BillingReportError, MeterSend, SendState
from schemas.topics import ACCOUNT, BILLING_REPORT, METER_SEND
from streams.domain.billing.meter.send import FLAGGED, NO_CUSTOMER, TOO_OLD
from streams.domain.billing.reports.amounts import Amount, BillingStatus, MeterTokens
from streams.domain.clock import ManualClock


@pytest.fixture(autouse=True)
def _logs_go_where_they_went() -> Iterator[None]:
    """A command that speaks to Kafka sends logs to its own stderr, which ends with it."""
    yield
    structlog.reset_defaults()


def _send(
    identifier: str,
    state: SendState,
    *,
    tokens: int = 10,
    reason: str = "",
    watermark: int = 1,
    at_ms: int = 1_000_000,
    meter: str | None = None,
) -> MeterSend:
    return MeterSend(
        identifier=identifier,
        watermark=watermark,
        tenant="acme",
        batch_id="batch_1",
        endpoint="/v1/chat/completions",
        completion_window="24h",
        batch_created_at_ms=at_ms,
        model="m",
        token_type="input",
        flagged=False,
        flush=0,
        tokens=tokens,
        at_ms=at_ms,
        state=state,
        reason=reason,
        event_name=meter,
        changed_at_ms=at_ms,
    )


async def test_the_last_customer_of_a_tenant_counts() -> None:
    log, clock = FakeLog(), ManualClock()
    await create_key(log, "acme", "no customer")
    await set_customer(log, "zeta", "cus_z", clock=clock)
    await set_customer(log, "acme", "cus_1", clock=clock)
    last = await set_customer(log, "acme", "cus_2", clock=clock)
    assert last.at_ms == clock.now_ms()
    found = await list_customers(log.reader([ACCOUNT]))
    assert [(c.tenant, c.stripe_customer_id) for c in found] == [
        ("acme", "cus_2"),
        ("zeta", "cus_z"),
    ]


async def test_a_customer_that_is_taken_away_is_gone_and_others_stay() -> None:
    log = FakeLog()
    await set_customer(log, "acme", "cus_1")
    other = await set_customer(log, "zeta", "cus_z")
    await unset_customer(log, "acme")
    assert await list_customers(log.reader([ACCOUNT])) == [other]


@pytest.mark.parametrize("customer", ["", "cus 1", "cus_1\n", "c" * 256, "cüs"])
async def test_what_is_no_customer_is_not_written(customer: str) -> None:
    log = FakeLog()
    with pytest.raises(InvalidCustomer):
        await set_customer(log, "acme", customer)
    assert log.of(ACCOUNT) == []


async def test_what_is_no_tenant_is_not_written() -> None:
    log = FakeLog()
    with pytest.raises(InvalidKeyName):
        await set_customer(log, "a/b", "cus_1")
    with pytest.raises(InvalidKeyName):
        await unset_customer(log, "")
    assert log.of(ACCOUNT) == []


async def test_the_status_sums_the_latest_state_of_each_amount() -> None:
    log = FakeLog()
    for send in (
        _send("a", SendState.PENDING, tokens=5),
        _send("a", SendState.CONFIRMED, tokens=5, watermark=3, meter="in"),
        _send("b", SendState.CONFIRMED, tokens=7, meter="in"),
        _send("c", SendState.PARKED, tokens=11, reason=NO_CUSTOMER, at_ms=500),
        _send("d", SendState.REJECTED, tokens=13, reason="invalid_request", meter="in"),
    ):
        await log.send(METER_SEND, send.identifier, send)
    status = await read_status(log.reader([METER_SEND]))
    assert status.by_state() == {
        SendState.CONFIRMED: Amount(2, 12),
        SendState.PARKED: Amount(1, 11),
        SendState.REJECTED: Amount(1, 13),
    }
    assert status.by_meter() == {
        ("acme", ""): MeterTokens(waiting=11),
        ("acme", "in"): MeterTokens(confirmed=12, rejected=13),
    }
    assert [send.identifier for send in status.stuck()] == ["c", "d"]


def test_the_oldest_unconfirmed_is_the_oldest_that_may_still_arrive() -> None:
    status = BillingStatus(
        [
            _send("done", SendState.CONFIRMED, at_ms=1),
            _send("refused", SendState.REJECTED, at_ms=2),
            _send("old", SendState.PARKED, reason=NO_CUSTOMER, at_ms=3),
            _send("new", SendState.PENDING, at_ms=4),
        ]
    )
    oldest = status.oldest_open()
    assert oldest is not None
    assert oldest.identifier == "old"
    assert BillingStatus().oldest_open() is None


@pytest.mark.parametrize(
    ("state", "reason", "needs"),
    [
        (SendState.PENDING, "", False),
        (SendState.CONFIRMED, "", False),
        (SendState.PARKED, NO_CUSTOMER, False),
        (SendState.PARKED, FLAGGED, True),
        (SendState.PARKED, TOO_OLD, True),
        (SendState.REJECTED, "invalid_request", True),
    ],
)
def test_the_exit_code_says_whether_something_waits_for_a_person(
    monkeypatch: pytest.MonkeyPatch, state: SendState, reason: str, needs: bool
) -> None:
    async def found(_: object) -> BillingStatus:
        return BillingStatus([_send("a", state, reason=reason)])

    monkeypatch.setattr(billing, "_status", found)
    plain = CliRunner().invoke(billing.app, ["status", "--kafka", "localhost:1"])
    assert plain.exit_code == int(needs)
    assert state.value in plain.stdout
    assert reason in plain.stdout
    told = CliRunner().invoke(billing.app, ["status", "--json", "--kafka", "localhost:1"])
    assert told.exit_code == int(needs)
    shown = json.loads(told.stdout)
    assert shown["needs_somebody"] is needs
    assert shown["states"] == {state.value: {"sends": 1, "tokens": 10}}
    assert shown["meters"][0]["tenant"] == "acme"


def _report(event_id: str, at_ms: int, *identifiers: str, asked: bool = True) -> BillingReport:
    error = BillingReportError(code="archived_meter", count=3, identifiers=identifiers)
    return BillingReport(
        event_id=event_id,
        event_type="v1.billing.meter.error_report_triggered",
        at_ms=at_ms,
        meter_id="mtr_1",
        asked=asked,
        errors=(error,) if asked else (),
    )


async def test_the_status_has_what_stripe_reported_once_for_each_event_the_latest_first() -> None:
    log = FakeLog()
    await log.send(METER_SEND, "a", _send("a", SendState.CONFIRMED))
    told = [_report("e1", 1, asked=False), _report("e2", 2, "a"), _report("e1", 1, "a")]
    for report in [*told, told[0]]:
        await log.send(BILLING_REPORT, report.event_id, report)
    status = await read_status(log.reader([METER_SEND, BILLING_REPORT]))
    assert status.reports.all() == [told[1], told[2]]
    assert status.send("a") == _send("a", SendState.CONFIRMED)


@pytest.mark.parametrize(("days", "needs"), [(6, True), (8, False)])
def test_what_stripe_reported_is_shown_with_the_amounts_it_is_about(
    monkeypatch: pytest.MonkeyPatch, days: int, needs: bool
) -> None:
    async def found(_: object) -> BillingStatus:
        status = BillingStatus([_send("a", SendState.CONFIRMED)])
        at_ms = time.time_ns() // 1_000_000 - days * 86_400_000
        status.reports.apply(_report("e1", at_ms, "a", "\x1bb"))
        status.reports.apply(_report("e2", at_ms, asked=False))
        return status

    monkeypatch.setattr(billing, "_status", found)
    plain = CliRunner().invoke(billing.app, ["status", "--kafka", "localhost:1"])
    assert plain.exit_code == int(needs)
    assert "a: acme, 10 input tokens of m, batch_1, confirmed" in plain.stdout
    assert "\\x1bb: not one of ours" in plain.stdout
    assert "could not ask" in plain.stdout
    told = json.loads(
        CliRunner().invoke(billing.app, ["status", "--json", "--kafka", "localhost:1"]).stdout
    )
    assert told["needs_somebody"] is needs
    first, second = told["error_reports"]
    assert first["errors"][0]["amounts"][0]["batch_id"] == "batch_1"
    assert first["errors"][0]["amounts"][1]["tenant"] is None
    assert second["errors"] is None


@given(st.permutations(range(1, 6)), st.lists(st.integers(1, 5)))
def test_the_order_and_repetition_of_records_change_nothing(
    order: list[int], again: list[int]
) -> None:
    states = [SendState.PENDING, SendState.PARKED, SendState.PENDING, SendState.PARKED]
    states.append(SendState.CONFIRMED)
    records = {w: _send("a", states[w - 1], watermark=w) for w in range(1, 6)}
    status = BillingStatus(records[w] for w in [*order, *again])
    assert status.by_state() == {SendState.CONFIRMED: Amount(1, 10)}
