"""How operators tell the meter what they decide, and what they are told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from api.billing.commands import InvalidDecision, NotAnswered, UnknownAmount, command
from api.cli import decide
from api.cli.main import app
from api.log_fake import FakeLog
from schemas.records import (
    BillingCommand,
    BillingCommandKind,
    BillingDecision,
    MeterSend,
    SendState,
)
from schemas.topics import METER_SEND, USAGE_RECORDED
from streams.domain.billing.meter.decisions import Refusal, decision
from streams.domain.clock import SystemClock
from tests.support.meter_world import World, usage

CANCEL = BillingCommandKind.CANCEL
_REASON = "the customer asked for it"


@pytest.fixture(autouse=True)
def _logs_go_where_they_went() -> Iterator[None]:
    yield
    structlog.reset_defaults()


async def _send() -> MeterSend:
    world = World()
    world.customers["ada"] = "cus_ada"
    world.log.append(usage("ada", "batch_1", range(5), world.clock.now_ms()))
    await world.settle()
    return next(iter(world.published.values()))


async def _ask(log: FakeLog, identifier: str, **fields: Any) -> tuple[BillingDecision, MeterSend]:
    values: dict[str, Any] = {"reason": _REASON, "by": "ops", "within_s": 5.0} | fields
    return await command(
        identifier, CANCEL, producer=log, readers=log.reader, clock=SystemClock(), **values
    )


async def _answer(log: FakeLog, refusal: str) -> None:
    """A meter that decides the first command."""
    reader = log.reader([USAGE_RECORDED])
    await reader.start("beginning")
    while not (found := await reader.poll()):
        pass
    given = found[0].record
    assert isinstance(given, BillingCommand)
    others = BillingCommand(
        command_id="other", tenant="ada", identifier="x", kind=CANCEL, reason="", by="", at_ms=1
    )
    await log.send(METER_SEND, "other", decision(others, None, "", 1))
    await log.send(METER_SEND, given.command_id, decision(given, None, refusal, 1))


async def test_a_decision_goes_to_the_meter_of_the_tenant_and_its_answer_comes_back() -> None:
    log, send = FakeLog(), await _send()
    await log.send(METER_SEND, send.identifier, send)
    meter = asyncio.create_task(_answer(log, ""))
    made, before = await _ask(log, send.identifier)
    await meter
    [given] = log.of(USAGE_RECORDED)
    assert given.key == "ada"
    assert given.record == made.command
    assert (made.command.reason, made.command.by, made.command.kind) == (_REASON, "ops", CANCEL)
    assert before == send


async def test_nothing_is_decided_about_an_amount_that_nobody_knows() -> None:
    log = FakeLog()
    with pytest.raises(UnknownAmount):
        await _ask(log, "nothing")
    assert log.of(USAGE_RECORDED) == []


@pytest.mark.parametrize(
    "wrong", [{"reason": " "}, {"reason": "a\nb"}, {"reason": "x" * 501}, {"by": ""}]
)
async def test_who_and_why_must_be_said_in_plain_words(wrong: dict[str, str]) -> None:
    log, send = FakeLog(), await _send()
    await log.send(METER_SEND, send.identifier, send)
    with pytest.raises(InvalidDecision):
        await _ask(log, send.identifier, **wrong)
    assert log.of(USAGE_RECORDED) == []


async def test_a_meter_that_does_not_answer_is_not_waited_for_for_ever() -> None:
    log, send = FakeLog(), await _send()
    await log.send(METER_SEND, send.identifier, send)
    with pytest.raises(NotAnswered) as caught:
        await _ask(log, send.identifier, within_s=0.05)
    assert caught.value.state == SendState.CONFIRMED
    assert len(log.of(USAGE_RECORDED)) == 1


# -- the command line ------------------------------------------------------------------------


def _run(
    monkeypatch: pytest.MonkeyPatch,
    *arguments: str,
    refusal: str = "",
    error: Exception | None = None,
    saw: Callable[[BillingCommandKind], None] = lambda _: None,
) -> tuple[int, str, str]:
    async def decided(
        _: object, identifier: str, kind: BillingCommandKind, reason: str, by: str, __: float
    ) -> tuple[BillingDecision, MeterSend]:
        saw(kind)
        if error is not None:
            raise error
        send = await _send()
        given = BillingCommand(
            command_id="cmd_1",
            tenant="ada",
            identifier=identifier,
            kind=kind,
            reason=reason,
            by=by,
            at_ms=1,
        )
        return decision(given, send, refusal, 1), send

    monkeypatch.setattr(decide, "_command", decided)
    options = ["--kafka", "localhost:1", "--by", "ops", "--reason", _REASON]
    ran = CliRunner().invoke(app, ["billing", *arguments, *options])
    return ran.exit_code, ran.stdout, ran.stderr


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        (("adjust", "a:1"), CANCEL, "taken back"),
        (("release", "a:1"), BillingCommandKind.SEND, "released"),
        (("release", "a:1", "--drop"), BillingCommandKind.WRITE_OFF, "written off"),
        (("release", "a:1", "--arrived"), BillingCommandKind.ARRIVED, "taken for billed"),
    ],
)
def test_what_was_done_is_said(
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    kind: BillingCommandKind,
    said: str,
) -> None:
    saw: list[BillingCommandKind] = []
    code, out, _ = _run(monkeypatch, *arguments, saw=saw.append)
    assert (code, saw) == (0, [kind])
    assert said in out
    assert f"By ops: {_REASON}" in out


def test_after_a_day_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = _run(monkeypatch, "adjust", "a:1", refusal=Refusal.TOO_LATE)
    assert (code, out) == (1, "")
    assert "24 hours" in err
    assert "credit note" in err


@pytest.mark.parametrize("refusal", list(Refusal))
def test_every_refusal_has_words(monkeypatch: pytest.MonkeyPatch, refusal: Refusal) -> None:
    code, _, err = _run(monkeypatch, "release", "a:1", refusal=refusal)
    assert code == 1
    assert "Stripe refused it" not in err


def test_json_has_the_decision_also_where_it_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = _run(monkeypatch, "adjust", "a:1", "--json", refusal="invalid_request")
    shown = json.loads(out)
    assert code == 1
    assert (shown["done"], shown["refusal"], shown["by"]) == (False, "invalid_request", "ops")


@pytest.mark.parametrize(
    ("error", "code"),
    [(InvalidDecision("no"), 2), (UnknownAmount("no"), 1), (NotAnswered("cancelling"), 1)],
)
def test_what_could_not_be_decided_is_said(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    found, _, err = _run(monkeypatch, "adjust", "a:1", error=error)
    assert found == code
    assert str(error) in err


def test_an_amount_is_written_off_or_there_not_both(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _run(monkeypatch, "release", "a:1", "--drop", "--arrived")[0] == 2
