"""One call to an upstream for a real-time request, its answer passed on as it comes."""

from __future__ import annotations

import asyncio
import math
from typing import NamedTuple

import structlog

from streams.domain.clock import Clock
from streams.domain.failures import FailureReason
from streams.domain.outcome.retry import asked_pause_s
from streams.domain.outcome.streamed import Used, asking_for_usage, without_usage
from streams.domain.outcome.usage import read_answer
from streams.domain.upstreams import Lane, Rewrite, Upstream
from streams.ports.inference import (
    BadAnswerError,
    BlipError,
    InferenceClient,
    InferenceError,
    Stream,
)
from streams.realtime_worker.call import Call
from streams.realtime_worker.events import Events
from streams.realtime_worker.pool import Pool

log = structlog.get_logger(__name__)

EVENTS = "text/event-stream"
#: A kept connection that the server had closed costs one of these.
_BLIP_PAUSES_S = (0.01, 0.1)


class _Ask(NamedTuple):
    """What is sent. hides_usage: its client didn't ask for the usage, and doesn't get it."""

    body: bytes
    hides_usage: bool


class Caller:
    """Makes the calls to one upstream."""

    def __init__(self, upstream: Upstream, client: InferenceClient, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._rewrite = Rewrite(upstream, Lane.REALTIME)
        self._asks_for_usage = upstream.stream_usage

    async def run(self, call: Call, pool: Pool) -> tuple[FailureReason | None, Used | None]:
        """Runs it to its end, good or bad: why it failed, and what its client has to pay.

        Cancelling it cuts the connection; the call is then not ended.
        """
        left_s = (call.request.deadline_ms - self._clock.now_ms()) / 1000
        used: Used | None = None
        reason: FailureReason | None = None
        try:
            async with asyncio.timeout(left_s):
                used = await self._attempts(call, pool)
        except TimeoutError:
            reason = FailureReason.TIMEOUT
            used = call.given
        except InferenceError as error:
            reason = error.reason
        except Exception as error:  # noqa: BLE001 - one request must not take the worker down
            log.error(
                "A real-time call failed inside the worker.",
                action="realtime_call_broken",
                request_id=call.request.request_id,
                error=type(error).__name__,
            )
            reason = FailureReason.INVALID_RESPONSE
        if reason is not None:
            call.fail(reason)
        return reason, used

    async def _attempts(self, call: Call, pool: Pool) -> Used | None:
        request = call.request
        body = self._rewrite.body(request.body, request.model)
        asking = None
        if request.stream and self._asks_for_usage:
            asking = asking_for_usage(body, request.endpoint)
        ask = _Ask(body if asking is None else asking, asking is not None)
        for pause_s in _BLIP_PAUSES_S:
            try:
                return await self._attempt(call, ask, pool)
            except BlipError:
                await asyncio.sleep(pause_s)
        return await self._attempt(call, ask, pool)

    async def _attempt(self, call: Call, ask: _Ask, pool: Pool) -> Used | None:
        began = self._clock.monotonic_s(), self._clock.now_ms()
        pool.asked(call)
        try:
            return await self._ask(call, ask, pool, began)
        finally:
            pool.answered(call)

    async def _ask(
        self, call: Call, ask: _Ask, pool: Pool, began: tuple[float, int]
    ) -> Used | None:
        """began: when, on the monotonic clock and in Unix milliseconds, it was sent."""
        endpoint = call.request.endpoint
        async with self._client.open(endpoint, ask.body) as stream:
            if stream.status < 300 and stream.content_type == EVENTS:
                self._head(call, stream)
                return await self._events(call, stream, pool, ask, began)
            whole = b"".join([chunk async for chunk in stream.chunks()])
            if 300 <= stream.status < 400:
                raise BadAnswerError
            reading = read_answer(whole, endpoint)
            if reading is None and stream.status < 300:
                raise BadAnswerError
            self._head(call, stream)
            await call.data(whole, urgent=False)
            call.end(urgent=True)
            if reading is None or stream.status >= 300:
                return None
            return Used(reading.usage, reading.flag)

    async def _events(
        self, call: Call, stream: Stream, pool: Pool, ask: _Ask, began: tuple[float, int]
    ) -> Used | None:
        events, (began_s, sent_ms) = Events(), began
        call.events = events
        last_s: float | None = None
        async for chunk in stream.chunks():
            whole = events.feed(chunk)
            if not whole:
                continue
            now_s = self._clock.monotonic_s()
            if last_s is None:
                pool.answered(call)
                pool.first_token(sent_ms, now_s - began_s)
            else:
                pool.gap(now_s - last_s)
            if ask.hides_usage:
                whole = without_usage(whole)
            await call.data(whole, urgent=last_s is None)
            last_s = now_s
        await call.data(events.rest(), urgent=False)
        call.end(urgent=False)
        return call.used

    def _head(self, call: Call, stream: Stream) -> None:
        asked_s = asked_pause_s(stream.retry_after_ms, stream.retry_after, self._clock.now_ms())
        retry_after_s = 0 if asked_s is None else max(1, math.ceil(asked_s))
        call.head(stream.status, stream.content_type, retry_after_s)
