"""The meter sink at Stripe: v1 meter events, their summaries and adjustments.

Customer and value travel under the keys that meters have by default. Answers are bounded in time;
what isn't known to have arrived the caller asks again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import aiohttp
import stripe

from streams.ports.meter_sink import EventRefused, MeterEvent, RefusalCode, SinkUnavailable

#: The version that requests are written for, whatever the account's default is.
API_VERSION = "2026-10-28.endive"
_TIMEOUT_S = 30.0
#: Repeats are the caller's business: it writes down what it does.
_RETRIES = 0
#: A key that Stripe does not accept stays so until an operator changes it.
_NOT_ALLOWED_PAUSE_S = 60.0
_PAGE = 100
_CODES = {code.value: code for code in RefusalCode}
#: What Stripe says of an identifier that it has already.
_DUPLICATE = "already exists with identifier"
#: In whatever words it says that an event was taken back before, which isn't documented.
_CANCELLED_BEFORE = ("already", "cancel")


class StripeMeterSink:
    """Calls Stripe with a secret or restricted key."""

    needs_customer = True
    #: Stripe sums events up later than it takes them, and doesn't say by how much at the most.
    sums_lag_s = 900.0

    def __init__(self, key: str, api_base: str | None = None) -> None:
        self._http = stripe.AIOHTTPClient(timeout=_TIMEOUT_S)
        bases: Any = {} if api_base is None else {"api": api_base, "meter_events": api_base}
        self._client = stripe.StripeClient(
            key,
            http_client=self._http,
            base_addresses=bases,
            stripe_version=API_VERSION,
            max_network_retries=_RETRIES,
        )
        #: Ids of meters by event name.
        self._meters: dict[str, list[str]] = {}

    async def send(self, event: MeterEvent) -> None:
        """Creates a meter event; one with its identifier is as good."""
        payload = {
            "stripe_customer_id": event.customer,
            "value": str(event.tokens),
            **event.dimensions,
        }
        try:
            async with _told():
                await self._client.v1.billing.meter_events.create_async(
                    {
                        "event_name": event.event_name,
                        "identifier": event.identifier,
                        "payload": payload,
                        "timestamp": event.at_ms // 1000,
                    }
                )
        except _Duplicate:
            return

    async def total(self, customer: str, event_name: str, start_ms: int, end_ms: int) -> int:
        """The sum of the meter's event summaries."""
        async with _told():
            asked: Any = {
                "customer": customer,
                "start_time": start_ms // 1000,
                "end_time": end_ms // 1000,
                "limit": _PAGE,
            }
            total = 0
            for meter in await self._named(event_name):
                found = await self._client.v1.billing.meters.event_summaries.list_async(
                    meter, asked
                )
                total += sum([int(summary.aggregated_value) async for summary in _all(found)])
            return total

    async def cancel(self, identifier: str, event_name: str) -> None:
        """Creates a meter event adjustment."""
        with contextlib.suppress(_Duplicate):
            await self._cancel(identifier, event_name)

    async def _cancel(self, identifier: str, event_name: str) -> None:
        async with _told():
            await self._client.v1.billing.meter_event_adjustments.create_async(
                {"event_name": event_name, "type": "cancel", "cancel": {"identifier": identifier}}
            )

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.close_async()  # type: ignore[no-untyped-call]

    async def _named(self, event_name: str) -> list[str]:
        """The meter of this name, and archived ones that had it before."""
        if event_name not in self._meters:
            listed = await self._client.v1.billing.meters.list_async({"limit": _PAGE})
            found: dict[str, list[str]] = {}
            async for meter in _all(listed):
                found.setdefault(meter.event_name, []).append(meter.id)
            self._meters = found
        if event_name not in self._meters:
            raise EventRefused(RefusalCode.NO_METER)
        return self._meters[event_name]


class _Duplicate(Exception):  # noqa: N818 - as good as an answer
    """Stripe has done this before."""


def _all(listed: Any) -> AsyncIterator[Any]:
    return cast("AsyncIterator[Any]", listed.auto_paging_iter())


@contextlib.asynccontextmanager
async def _told() -> AsyncIterator[None]:
    """Turns what Stripe's library raises into what the port promises."""
    try:
        async with asyncio.timeout(_TIMEOUT_S + 5):
            yield
    except (stripe.APIConnectionError, aiohttp.ClientError, TimeoutError) as error:
        raise SinkUnavailable("timeout") from error
    except stripe.RateLimitError as error:
        raise SinkUnavailable("rate_limited", _asked_s(error)) from error
    except (stripe.AuthenticationError, stripe.PermissionError) as error:
        raise SinkUnavailable("not_allowed", _NOT_ALLOWED_PAUSE_S) from error
    except stripe.InvalidRequestError as error:
        if _is_repeat(str(error.user_message or error).lower()):
            raise _Duplicate from error
        raise EventRefused(_code(error)) from error
    except stripe.StripeError as error:
        # 5xx, 409, an answer that is no JSON: nobody knows what became of the call.
        raise SinkUnavailable("server_error", _asked_s(error)) from error


def _is_repeat(said: str) -> bool:
    return _DUPLICATE in said or all(word in said for word in _CANCELLED_BEFORE)


def _code(error: stripe.InvalidRequestError) -> RefusalCode:
    if error.code in _CODES:
        return _CODES[error.code]
    param, text = error.param or "", str(error.user_message or "").lower()
    if "event_name" in param or "no active meter" in text:
        return RefusalCode.NO_METER
    if "stripe_customer_id" in param or "no such customer" in text:
        return RefusalCode.CUSTOMER_NOT_FOUND
    if param == "timestamp":
        return (
            RefusalCode.TIMESTAMP_IN_FUTURE if "future" in text else RefusalCode.TIMESTAMP_TOO_OLD
        )
    return RefusalCode.INVALID_REQUEST


def _asked_s(error: stripe.StripeError) -> float | None:
    asked = str((error.headers or {}).get("retry-after", ""))
    return float(asked) if asked.isdecimal() else None
