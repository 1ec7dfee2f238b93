"""POST /stripe/webhook: Stripe tells of usage that it took and could not bill.

Outside of /v1 and without an API key: the signature says who speaks. A report is a record in the
log under the event's id, so that an event that comes again changes nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict

import structlog
from aiohttp import web

from api.auth import STRIPE_WEBHOOK
from api.errors import InvalidRequest, Unavailable
from api.gateway import GATEWAY
from api.http.body import read_body
from api.http.middleware import METRICS
from schemas.metrics import BILLING_REPORTED, Metrics
from schemas.records import BillingReport
from schemas.topics import BILLING_REPORT
from streams.domain.billing.reports.stripe_errors import EVENT_TYPES
from streams.ports.meter_sink import RefusalCode
from streams.ports.stripe_events import EventsUnavailable, NoticeInvalid, StripeEvents

log = structlog.get_logger(__name__)

#: Thin events have some hundred bytes.
MAX_BYTES = 64 * 1024
#: Requests at once, and how long a body may take: whoever asks has shown no key yet, and must not
#: keep the gateway from others.
MAX_AT_ONCE, _BODY_S = 16, 5.0
#: Event ids remembered, so that a repeat asks Stripe nothing and is not counted again.
_REMEMBERED = 10_000
_CODES = frozenset(code.value for code in RefusalCode)
#: The label of other codes, and of a report whose errors could not be asked for.
_OTHER = "other"


class StripeWebhook:
    """The route, and which events it has had."""

    def __init__(self, events: StripeEvents) -> None:
        self._events = events
        self._had: OrderedDict[str, None] = OrderedDict()
        self._places = asyncio.Semaphore(MAX_AT_ONCE)
        #: Those whose bodies are being read, the longest under way first.
        self._reading: OrderedDict[asyncio.Timeout, None] = OrderedDict()

    async def receive(self, request: web.Request) -> web.Response:
        """Takes one event. Raises ApiError, KafkaBaseError, TimeoutError: Stripe repeats it."""
        now_s = request.app[GATEWAY].clock.now_ms() // 1000
        if not self._events.plausible(request.headers.get("Stripe-Signature"), now_s):
            raise _not_stripes()
        if self._places.locked():
            self._make_room()
        async with self._places:
            return await self._receive(request)

    async def _receive(self, request: web.Request) -> web.Response:
        async with asyncio.timeout(_BODY_S) as limit:
            self._reading[limit] = None
            try:
                body = await read_body(request, MAX_BYTES)
            finally:
                self._reading.pop(limit, None)
        try:
            notice = self._events.verified(body, request.headers.get("Stripe-Signature"))
        except NoticeInvalid as error:
            raise _not_stripes() from error
        if notice.event_type not in EVENT_TYPES or notice.event_id in self._had:
            return _taken()
        try:
            errors = await self._events.errors(notice)
        except EventsUnavailable as error:
            raise Unavailable("Stripe can't be asked now.", code="stripe_unavailable") from error
        report = BillingReport(
            event_id=notice.event_id,
            event_type=notice.event_type,
            at_ms=notice.at_ms,
            meter_id=notice.meter_id,
            asked=errors is not None,
            errors=errors or (),
        )
        await request.app[GATEWAY].send(BILLING_REPORT, report.event_id, report)
        self._count(report, request.app[METRICS])
        return _taken()

    def _make_room(self) -> None:
        """Ends the reading of the slowest body: Stripe's come at once. Raises Unavailable."""
        if not self._reading:
            raise Unavailable("There are too many requests to this path.", code="overloaded")
        slowest, _ = self._reading.popitem(last=False)
        slowest.reschedule(asyncio.get_running_loop().time())

    def _count(self, report: BillingReport, metrics: Metrics) -> None:
        if report.event_id in self._had:
            return
        self._had[report.event_id] = None
        if len(self._had) > _REMEMBERED:
            self._had.popitem(last=False)
        counts: Counter[str] = Counter()
        for error in report.errors:
            counts[error.code if error.code in _CODES else _OTHER] += error.count
        counts = counts or Counter({_OTHER: 1})
        for code, count in counts.items():
            metrics.counter(BILLING_REPORTED).labels(code).inc(count)
        log.warning(
            "Stripe could not bill usage that it took.",
            action="billing_reported",
            event_id=report.event_id,
            meter_id=report.meter_id,
            counts=dict(counts),
        )


def install(app: web.Application, events: StripeEvents) -> None:
    """Adds the route."""
    app.router.add_post(STRIPE_WEBHOOK, StripeWebhook(events).receive)


def _not_stripes() -> InvalidRequest:
    return InvalidRequest("This is no event of Stripe's.")


def _taken() -> web.Response:
    return web.json_response({"received": True})
