"""Stripe's webhook to us: thin events, whose content is asked for once their signature holds."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from typing import Annotated, Any

import aiohttp
import msgspec
import stripe
import structlog

from schemas.records import BillingReportError
from streams.adapters.meter_stripe import API_VERSION
from streams.domain.billing.reports.stripe_errors import MAX_ERRORS, bounded
from streams.ports.stripe_events import (
    MAX_ID,
    MAX_OFF_S,
    TOLERANCE_S,
    EventsUnavailable,
    Notice,
    NoticeInvalid,
)

log = structlog.get_logger(__name__)

#: Stripe waits some seconds for our answer, and repeats what was not answered.
_TIMEOUT_S = 8.0

#: A Stripe-Signature: `t=`, a `v1=` for each secret that is good, and schemes that are not ours.
_MAX_SIGNATURE = 2048
_TIME = re.compile(r"t=([0-9]{1,12})")
_SIGNED = re.compile(r"v1=[0-9a-f]{64}")

_ID = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_]+$", max_length=MAX_ID)]


class _Related(msgspec.Struct):
    id: _ID
    type: str = ""


class _Notice(msgspec.Struct):
    id: _ID
    type: Annotated[str, msgspec.Meta(max_length=MAX_ID)]
    #: Unix seconds in events of the older kind.
    created: datetime | int
    related_object: _Related | None = None


class _Request(msgspec.Struct, frozen=True):
    identifier: str = ""


class _Sample(msgspec.Struct, frozen=True):
    request: _Request = _Request()


class _ErrorType(msgspec.Struct, frozen=True):
    code: str
    error_count: int
    sample_errors: list[_Sample] = []


class _Reason(msgspec.Struct, frozen=True):
    error_types: list[_ErrorType] = []


class _Data(msgspec.Struct, frozen=True):
    reason: _Reason = _Reason()


class _Event(msgspec.Struct, frozen=True):
    data: _Data = _Data()


class StripeEventsReader:
    """Checks with an event destination's secret, and asks with a key where there is one."""

    def __init__(self, secret: str, key: str | None = None, api_base: str | None = None) -> None:
        self._secret = secret
        self._http = stripe.AIOHTTPClient(timeout=_TIMEOUT_S)
        bases: Any = {} if api_base is None else {"api": api_base}
        self._client = key and stripe.StripeClient(
            key,
            http_client=self._http,
            base_addresses=bases,
            stripe_version=API_VERSION,
            max_network_retries=0,
        )

    def plausible(self, signature: str | None, now_s: int) -> bool:
        """See StripeEvents.plausible."""
        if signature is None or len(signature) > _MAX_SIGNATURE:
            return False
        parts = signature.split(",")
        times = [found[1] for part in parts if (found := _TIME.fullmatch(part))]
        signed = any(_SIGNED.fullmatch(part) for part in parts)
        return signed and len(times) == 1 and abs(now_s - int(times[0])) <= MAX_OFF_S

    def verified(self, body: bytes, signature: str | None) -> Notice:
        """See StripeEvents.verified."""
        try:
            stripe.WebhookSignature.verify_header(body, signature, self._secret, TOLERANCE_S)
            found = msgspec.json.decode(body, type=_Notice)
        except (stripe.SignatureVerificationError, UnicodeError, msgspec.MsgspecError) as error:
            raise NoticeInvalid(type(error).__name__) from error
        related = found.related_object
        return Notice(
            event_id=found.id,
            event_type=found.type,
            at_ms=_ms(found.created),
            meter_id=related.id if related and related.type == "billing.meter" else None,
        )

    async def errors(self, notice: Notice) -> tuple[BillingReportError, ...] | None:
        """See StripeEvents.errors."""
        if not self._client:
            return None
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                event = await self._client.v2.core.events.retrieve_async(notice.event_id)
        except (stripe.AuthenticationError, stripe.PermissionError, stripe.InvalidRequestError):
            log.warning(
                "Stripe does not tell what an event says: may the key read events?",
                action="stripe_event_refused",
                event_id=notice.event_id,
            )
            return None
        except (stripe.StripeError, aiohttp.ClientError, TimeoutError) as error:
            raise EventsUnavailable(type(error).__name__) from error
        return _errors(event)

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.close_async()  # type: ignore[no-untyped-call]


def _errors(event: Any) -> tuple[BillingReportError, ...] | None:
    try:
        found = msgspec.convert(event.to_dict(), _Event)
    except msgspec.ValidationError:
        return None
    return tuple(
        bounded(
            one.code,
            one.error_count,
            (
                sample.request.identifier
                for sample in one.sample_errors
                if sample.request.identifier
            ),
        )
        for one in found.data.reason.error_types[:MAX_ERRORS]
    )


def _ms(created: datetime | int) -> int:
    if isinstance(created, int):
        return created * 1000
    return round(created.astimezone(UTC).timestamp() * 1000)
