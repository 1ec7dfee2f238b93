"""One call to an upstream for a real-time request, its answer passed on as it comes."""

from __future__ import annotations

import asyncio
import math

import structlog

from schemas.records import Usage
from streams.domain.clock import Clock
from streams.domain.failures import FailureReason
from streams.domain.outcome.retry import asked_pause_s
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


class Caller:
    """Makes the calls to one upstream."""

    def __init__(self, upstream: Upstream, client: InferenceClient, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._rewrite = Rewrite(upstream, Lane.REALTIME)

    async def run(self, call: Call, pool: Pool) -> tuple[FailureReason | None, Usage]:
        """Runs it to its end, good or bad: why it failed, and what it used.

        Cancelling it cuts the connection; the call is then not ended.
        """
        left_s = (call.request.deadline_ms - self._clock.now_ms()) / 1000
        usage = Usage()
        reason: FailureReason | None = None
        try:
            async with asyncio.timeout(left_s):
                usage = await self._attempts(call, pool)
        except TimeoutError:
            reason = FailureReason.TIMEOUT
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
        return reason, usage

    async def _attempts(self, call: Call, pool: Pool) -> Usage:
        request = call.request
        body = self._rewrite.body(request.body, request.model)
        for pause_s in _BLIP_PAUSES_S:
            try:
                return await self._attempt(call, body, pool)
            except BlipError:
                await asyncio.sleep(pause_s)
        return await self._attempt(call, body, pool)

    async def _attempt(self, call: Call, body: bytes, pool: Pool) -> Usage:
        endpoint = call.request.endpoint
        began_s, sent_ms = self._clock.monotonic_s(), self._clock.now_ms()
        async with self._client.open(endpoint, body) as stream:
            if stream.status < 300 and stream.content_type == EVENTS:
                self._head(call, stream)
                return await self._events(call, stream, pool, began_s, sent_ms)
            whole = b"".join([chunk async for chunk in stream.chunks()])
            if 300 <= stream.status < 400:
                raise BadAnswerError
            reading = read_answer(whole, endpoint)
            if reading is None and stream.status < 300:
                raise BadAnswerError
            self._head(call, stream)
            await call.data(whole, urgent=False)
            call.end(urgent=True)
            return Usage() if reading is None else reading.usage

    async def _events(
        self, call: Call, stream: Stream, pool: Pool, began_s: float, sent_ms: int
    ) -> Usage:
        events = Events()
        last_s: float | None = None
        async for chunk in stream.chunks():
            whole = events.feed(chunk)
            if not whole:
                continue
            now_s = self._clock.monotonic_s()
            if last_s is None:
                pool.first_token(sent_ms, now_s - began_s)
            else:
                pool.gap(now_s - last_s)
            await call.data(whole, urgent=last_s is None)
            last_s = now_s
        await call.data(events.rest(), urgent=False)
        call.end(urgent=False)
        return events.usage(call.request.endpoint)

    def _head(self, call: Call, stream: Stream) -> None:
        asked_s = asked_pause_s(stream.retry_after_ms, stream.retry_after, self._clock.now_ms())
        retry_after_s = 0 if asked_s is None else max(1, math.ceil(asked_s))
        call.head(stream.status, stream.content_type, retry_after_s)
