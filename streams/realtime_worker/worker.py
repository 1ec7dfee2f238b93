"""The realtime-worker's heart: requests in, parts of answers out.

    take ──► late? seen? cancelled? ──► accepted ──► pool (waits, runs) ──► end or failed

A request is run at most once: it was acked before it came here, so a worker that dies loses what
it had, and its gateway tells the clients.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping

from schemas.metrics import (
    REALTIME_ANSWERS_LOST,
    REALTIME_CALLS,
    REALTIME_IN_FLIGHT,
    REALTIME_NOT_RUN,
    REALTIME_TOKENS,
    REALTIME_TTFT,
    Metrics,
)
from schemas.records import RealtimeCancel, RealtimeLoad, RealtimeRequest, Usage
from streams.background import Broken
from streams.domain.clock import Clock
from streams.domain.failures import FailureReason
from streams.domain.outcome.streamed import Used
from streams.domain.upstreams import UpstreamTable
from streams.realtime_worker.call import Call
from streams.realtime_worker.pool import Pool
from streams.realtime_worker.replies import Replies, Send
from streams.realtime_worker.upstream import Caller

#: Ids that are remembered: of requests taken, and of those cancelled before they came.
MAX_REMEMBERED = 20_000
#: How long the broker has to take the last parts when the worker stops.
_SEND_BUDGET_S = 2.0


class Worker:
    """Everything between reading a request and the last part of its answer."""

    def __init__(
        self,
        name: str,
        process: str,
        table: UpstreamTable,
        callers: Mapping[str, Caller],
        send: Send,
        clock: Clock,
        metrics: Metrics,
        changed: Callable[[], None],
        answered: Callable[[RealtimeRequest, Used], None],
        broken: Broken,
    ) -> None:
        """callers: by upstream. changed: called when what the load says is different.

        answered: told what each good answer used, and what a client was given that left.
        """
        self._name = name
        self._process = process
        self._clock = clock
        self._metrics = metrics
        self._changed = changed
        self._answered = answered
        self._replies = Replies(name, process, send, clock, self._lost, broken)
        self._calls: dict[str, Call] = {}
        self._seen = _Ids()
        self._cancelled = _Ids()
        self.stopping = False
        self.pools: dict[str, Pool] = {}
        for pool in table.pools.values():
            upstream = table.upstreams[pool.upstream]
            run = self._runner(callers[pool.upstream], pool.name)
            self.pools[pool.name] = Pool(
                pool.name,
                upstream.realtime_max_in_flight,
                run,
                metrics.histogram(REALTIME_TTFT).labels(pool.name),
                changed,
                broken,
            )

    def take(self, request: RealtimeRequest) -> None:
        """Takes a request that was acked."""
        reason = self._reason_not_to(request)
        if reason is not None:
            self._metrics.counter(REALTIME_NOT_RUN).labels(reason).inc()
            return
        self._seen.add(request.request_id)
        call = Call(request, self._replies)
        call.accept()
        pool = self.pools.get(request.pool)
        if pool is None:
            # Its gateway has another upstream table.
            call.fail(FailureReason.UNREACHABLE)
            return
        self._calls[request.request_id] = call
        pool.add(call)
        self._changed()

    def cancel(self, cancel: RealtimeCancel) -> None:
        """Cuts a request, or all that a gateway had before it was started again."""
        if cancel.request_id:
            self._cancelled.add(cancel.request_id)
            found = self._calls.get(cancel.request_id)
            calls = [] if found is None else [found]
        else:
            calls = [
                call
                for call in self._calls.values()
                if call.request.gateway == cancel.gateway and call.request.at_ms < cancel.at_ms
            ]
        for call in calls:
            call.client_left = cancel.client_left
            self._cut(call)

    def load(self, *, stopping: bool) -> RealtimeLoad:
        """The load now, with the samples since the last time it was asked for."""
        now_ms = self._clock.now_ms()
        waiting = [pool.waiting_since_ms for pool in self.pools.values()]
        oldest_ms = min((since for since in waiting if since is not None), default=now_ms)
        return RealtimeLoad(
            worker=self._name,
            process=self._process,
            at_ms=now_ms,
            in_flight=len(self._calls),
            oldest_wait_ms=max(0, now_ms - oldest_ms),
            pools=tuple(pool.load() for pool in self.pools.values()),
            stopping=stopping,
        )

    async def stop(self, budget_s: float) -> None:
        """Takes nothing more, and gives what runs so long; the rest fails."""
        self.stopping = True
        await asyncio.gather(*(pool.drain(budget_s) for pool in self.pools.values()))
        for call in list(self._calls.values()):
            self._cut(call)
            call.fail(FailureReason.UNREACHABLE)
        await self._replies.drain(_SEND_BUDGET_S)

    def _reason_not_to(self, request: RealtimeRequest) -> str | None:
        now_ms = self._clock.now_ms()
        if request.request_id in self._cancelled:
            return "cancelled"
        if request.request_id in self._seen:
            return "seen"
        if now_ms > request.accept_by_ms or now_ms >= request.deadline_ms:
            return "late"
        return None

    def _runner(self, caller: Caller, name: str) -> Callable[[Call], Awaitable[None]]:
        gauge = self._metrics.gauge(REALTIME_IN_FLIGHT).labels(name)

        async def run(call: Call) -> None:
            gauge.inc()
            result = "cancelled"
            try:
                reason, used = await caller.run(call, self.pools[name])
                result = "completed" if reason is None else reason.metric_label
                self._bill(name, call, used)
                self._forget(call)
            except asyncio.CancelledError:
                # What it was given is worth its price, as it is where nobody leaves.
                if call.client_left:
                    self._bill(name, call, call.given)
                raise
            finally:
                gauge.dec()
                self._metrics.counter(REALTIME_CALLS).labels(name, result).inc()
                self._changed()

        return run

    def _bill(self, pool: str, call: Call, used: Used | None) -> None:
        if used is not None:
            self._answered(call.request, used)
            self._count(pool, used.usage)

    def _count(self, pool: str, usage: Usage) -> None:
        tokens = self._metrics.counter(REALTIME_TOKENS)
        tokens.labels(pool, "input").inc(usage.input_tokens)
        tokens.labels(pool, "cached").inc(usage.cached_tokens)
        tokens.labels(pool, "output").inc(usage.output_tokens)
        tokens.labels(pool, "reasoning").inc(usage.reasoning_tokens)

    def _lost(self, request_ids: Collection[str]) -> None:
        self._metrics.counter(REALTIME_ANSWERS_LOST).inc(len(request_ids))
        for request_id in request_ids:
            call = self._calls.get(request_id)
            if call is not None:
                # Nobody pays for it: its client gets an error.
                self._cut(call)

    def _cut(self, call: Call) -> None:
        self.pools[call.request.pool].cancel(call)
        self._forget(call)

    def _forget(self, call: Call) -> None:
        self._calls.pop(call.request.request_id, None)
        self._changed()


class _Ids:
    """The ids noted last."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._ids

    def add(self, request_id: str) -> None:
        self._ids[request_id] = None
        if len(self._ids) > MAX_REMEMBERED:
            self._ids.popitem(last=False)
