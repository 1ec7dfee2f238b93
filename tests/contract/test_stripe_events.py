"""What every StripeEvents promises: the fake, and Stripe's own library with a scripted server."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import stripe
from aiohttp import web
from aiohttp.test_utils import TestServer

from schemas.records import BillingReportError
from streams.adapters.stripe_events import StripeEventsReader
from streams.adapters.stripe_events_fake import FakeStripeEvents
from streams.domain.billing.reports.stripe_errors import MAX_CHARS, MAX_ERRORS, MAX_IDENTIFIERS
from streams.domain.clock import SystemClock
from streams.ports.stripe_events import MAX_OFF_S, EventsUnavailable, NoticeInvalid, StripeEvents

_SECRET = "whsec_of_the_destination"
EVENT: dict[str, Any] = {
    "id": "evt_test_65RCjj4EqW1sabcjs2Z16RCMoNQdSQkOWvfL6L5uU2K40u",
    "object": "v2.core.event",
    "context": None,
    "created": "2026-11-26T17:46:22.134Z",
    "livemode": False,
    "reason": None,
    "related_object": {
        "id": "mtr_test_61RCjiqdTDC91zgip41IqPCzPnxqqSVc",
        "type": "billing.meter",
        "url": "/v1/billing/meters/mtr_test_61RCjiqdTDC91zgip41IqPCzPnxqqSVc",
    },
    "type": "v1.billing.meter.error_report_triggered",
}
BODY = json.dumps(EVENT).encode()

Sign = Callable[[bytes, int], str]


def _stripe_s(body: bytes, at_s: int) -> str:
    return str(stripe.WebhookSignature.generate_signature_header(body.decode(), _SECRET, at_s))


@pytest.fixture(params=["fake", "stripe"])
async def reader(request: pytest.FixtureRequest) -> AsyncIterator[tuple[StripeEvents, Sign]]:
    """A reader, and how its notices are signed."""
    fake = FakeStripeEvents(SystemClock())
    made: StripeEvents = fake if request.param == "fake" else StripeEventsReader(_SECRET)
    yield made, fake.sign if request.param == "fake" else _stripe_s
    await made.close()


def _now() -> int:
    return int(time.time())


async def test_a_signed_notice_is_read(reader: tuple[StripeEvents, Sign]) -> None:
    events, sign = reader
    notice = events.verified(BODY, sign(BODY, _now()))
    assert notice.event_id == EVENT["id"]
    assert notice.event_type == EVENT["type"]
    assert notice.meter_id == EVENT["related_object"]["id"]


async def test_what_stripe_did_not_sign_is_refused(reader: tuple[StripeEvents, Sign]) -> None:
    events, sign = reader
    good = sign(BODY, _now())
    other = BODY.replace(b"evt_test", b"evt_mine")
    for body, signature in [
        (other, good),
        (BODY, None),
        (BODY, ""),
        (BODY, "t=,v1="),
        (BODY, good[:-1]),
        (BODY, f"t={_now()},v1={'0' * 64}"),
        (b"\xff\xfe", good),
    ]:
        with pytest.raises(NoticeInvalid):
            events.verified(body, signature)


async def test_a_signature_is_good_for_five_minutes(reader: tuple[StripeEvents, Sign]) -> None:
    events, sign = reader
    events.verified(BODY, sign(BODY, _now() - 240))
    with pytest.raises(NoticeInvalid):
        events.verified(BODY, sign(BODY, _now() - 310))


async def test_a_signature_is_plausible_by_its_form_and_age_before_there_is_a_body(
    reader: tuple[StripeEvents, Sign],
) -> None:
    events, sign = reader
    now = _now()
    for at_s in (now, now - MAX_OFF_S, now + MAX_OFF_S):
        assert events.plausible(sign(BODY, at_s), now)
    good = sign(BODY, now)
    for signature in [
        *(None, "", "t=,v1=", good[:-1], good + "0", good.upper(), good + "," * 4000),
        *(sign(BODY, now - MAX_OFF_S - 1), sign(BODY, now + MAX_OFF_S + 1)),
    ]:
        assert not events.plausible(signature, now)


async def test_a_header_with_two_secrets_and_a_scheme_that_is_not_ours_is_plausible() -> None:
    events, now = StripeEventsReader(_SECRET), _now()
    header = f"{_stripe_s(BODY, now)},v1={'0' * 64},v0={'1' * 64}"
    assert events.plausible(header, now)
    assert events.verified(BODY, header).event_id == EVENT["id"]
    assert not events.plausible(f"t={now},v0={'1' * 64}", now)
    await events.close()


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"id": "evt_1"}', b"\xc3\xa9"])
async def test_what_is_signed_and_no_event_is_refused(
    reader: tuple[StripeEvents, Sign], body: bytes
) -> None:
    events, sign = reader
    with pytest.raises(NoticeInvalid):
        events.verified(body, sign(body, _now()))


async def test_without_a_key_it_is_not_known_what_is_wrong(
    reader: tuple[StripeEvents, Sign],
) -> None:
    events, sign = reader
    assert await events.errors(events.verified(BODY, sign(BODY, _now()))) is None


async def test_an_event_of_the_older_kind_and_one_about_no_meter_are_read() -> None:
    events = StripeEventsReader(_SECRET)
    body = json.dumps({"id": "evt_1", "object": "event", "type": "x", "created": 7}).encode()
    notice = events.verified(body, _stripe_s(body, _now()))
    assert (notice.at_ms, notice.meter_id) == (7000, None)
    assert events.verified(BODY, _stripe_s(BODY, _now())).at_ms == 1_795_715_182_134
    await events.close()


@asynccontextmanager
async def _asking(status: int, answer: Any) -> AsyncIterator[tuple[StripeEventsReader, list[str]]]:
    """A reader with a key, and the paths that it asked for."""
    paths: list[str] = []

    async def answered(request: web.Request) -> web.Response:
        paths.append(request.path)
        return web.json_response(answer, status=status)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answered)
    async with TestServer(app) as running:
        made = StripeEventsReader(_SECRET, "sk_test_1", str(running.make_url("")).rstrip("/"))
        yield made, paths
        await made.close()


def _told(*errors: dict[str, Any]) -> dict[str, Any]:
    reason = {"error_count": 1, "error_types": list(errors)}
    return {**EVENT, "data": {"developer_message_summary": "There is one.", "reason": reason}}


def _error(code: str, count: int, *identifiers: str) -> dict[str, Any]:
    samples = [{"error_message": "No.", "request": {"identifier": one}} for one in identifiers]
    return {"code": code, "error_count": count, "sample_errors": samples}


async def test_errors_are_those_of_the_event_with_the_identifiers_that_it_names() -> None:
    told = _told(_error("archived_meter", 3, "batch_1:abc:0"), _error("no_meter", 1))
    async with _asking(200, told) as (events, paths):
        found = await events.errors(events.verified(BODY, _stripe_s(BODY, _now())))
    assert paths == [f"/v2/core/events/{EVENT['id']}"]
    assert found == (
        BillingReportError(code="archived_meter", count=3, identifiers=("batch_1:abc:0",)),
        BillingReportError(code="no_meter", count=1, identifiers=()),
    )


async def test_what_is_kept_of_an_event_is_bounded() -> None:
    big = _error("c" * 1000, 10**30, *["i" * 1000] * 1000)
    async with _asking(200, _told(*[big] * 100)) as (events, _):
        found = await events.errors(events.verified(BODY, _stripe_s(BODY, _now())))
    assert found is not None
    assert len(found) == MAX_ERRORS
    assert found[0].identifiers == ("i" * MAX_CHARS,) * MAX_IDENTIFIERS
    assert found[0].code == "c" * MAX_CHARS
    assert found[0].count < 2**63


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_where_the_key_may_not_ask_it_is_not_known_what_is_wrong(status: int) -> None:
    async with _asking(status, {"error": {"message": "no", "code": "x"}}) as (events, _):
        assert await events.errors(events.verified(BODY, _stripe_s(BODY, _now()))) is None


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_stripe_that_can_not_answer_now_is_to_be_asked_again(status: int) -> None:
    async with _asking(status, {"error": {"message": "no", "code": "x"}}) as (events, _):
        with pytest.raises(EventsUnavailable):
            await events.errors(events.verified(BODY, _stripe_s(BODY, _now())))


async def test_an_answer_that_is_no_event_of_this_kind_tells_nothing() -> None:
    async with _asking(200, {**EVENT, "data": {"reason": 7}}) as (events, _):
        assert await events.errors(events.verified(BODY, _stripe_s(BODY, _now()))) is None
