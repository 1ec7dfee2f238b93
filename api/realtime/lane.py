"""The real-time lane at the gateway: sends requests, hands answers to whoever waits, and knows
which workers are alive.

    begin ─► realtime.request          realtime.reply ─► the waiting request
                                       capacity       ─► who lives: silence is the end
    finish ─► realtime.cancel, if nobody wants the answer any more

Nothing of it is kept: a gateway that is started again says so, and workers drop what the one
before had asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from api.errors import RateLimited
from api.log_port import LogProducer, LogReader
from api.realtime.pending import Pending, Result, no_worker, stopped, too_late, worker_lost
from api.room import Room
from schemas.metrics import REALTIME_ANSWERS, REALTIME_PENDING, Metrics
from schemas.records import RealtimeCancel, RealtimeLoad, RealtimeReplies, RealtimeRequest
from schemas.topics import REALTIME_CANCEL, REALTIME_REQUEST
from streams.background import Tasks
from streams.domain.clock import Clock
from streams.kafka.errors import KafkaBaseError
from streams.kafka.reader import ReadRecord
from streams.settings import Settings

log = structlog.get_logger(__name__)

_WATCH_S = 0.25
#: A gateway that did nothing itself for so long can't tell who was silent.
_OWN_PAUSE_S = 1.0
_POLL_S = 1.0
_RETRY_S = 0.5
_FORGET_S = 60.0
#: What a client does itself, and so pays as far as the answer came.
_BY_ITS_CLIENT = frozenset({Result.GONE, Result.SLOW, Result.TIMEOUT})


@dataclass(frozen=True, kw_only=True)
class LaneLog:
    """Where answers come from: readers of realtime.reply and capacity, and our partition."""

    replies: LogReader
    loads: LogReader
    partition: int


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a request's body asks. pool: the upstream's that will run it. body: what it gets."""

    endpoint: str
    model: str
    pool: str
    stream: bool
    body: bytes


class Lane:
    """All real-time requests of this gateway."""

    def __init__(
        self,
        producer: LogProducer,
        lane_log: LaneLog,
        clock: Clock,
        settings: Settings,
        metrics: Metrics,
        *,
        accept_s: float,
        silence_s: float,
    ) -> None:
        """accept_s: without a worker's word until then a request gets an error. silence_s: a
        worker that is silent for so long is dead; it says something each second."""
        self._producer = producer
        self._log = lane_log
        self._clock = clock
        self._settings = settings
        self._metrics = metrics
        self._accept_s = accept_s
        self._silence_s = silence_s
        self._name = f"gateway-{settings.instance}"
        self._pending: dict[str, Pending] = {}
        self._room = Room(settings.realtime_max_pending)
        self._timers: dict[str, tuple[asyncio.TimerHandle, asyncio.TimerHandle]] = {}
        #: When each start of a worker was heard last, and the last start of each worker.
        self._heard: dict[str, float] = {}
        self._started: dict[str, str] = {}
        self._beside = Tasks(_note_bug)
        self._cancels = Tasks(_note_bug)

    async def start(self) -> None:
        """Begins to read. Raises KafkaBaseError."""
        await self._log.replies.start("end")
        await self._log.loads.start("end")
        self._beside.start(self._read(self._log.replies, self._replied))
        self._beside.start(self._read(self._log.loads, self._loaded))
        self._beside.start(self._watch())
        self._cancel("", left=False)

    async def stop(self) -> None:
        """Sends the last cancels and stops reading."""
        await self._cancels.stop(2.0)
        await self._beside.stop(0.0)
        await self._log.replies.stop()
        await self._log.loads.stop()

    def interrupt(self) -> None:
        """Ends all requests with an error, since this gateway won't wait for them any more."""
        for pending in list(self._pending.values()):
            pending.fail(Result.STOPPED, stopped())

    def begin(self, request_id: str, tenant: str, asked: Asked) -> Pending:
        """A request that will be sent. Raises RateLimited. finish() it, whatever happens."""
        self._check_room(tenant)
        now_ms, timeout_s = self._clock.now_ms(), self._settings.realtime_timeout_s
        request = RealtimeRequest(
            request_id=request_id,
            tenant=tenant,
            gateway=self._name,
            reply_partition=self._log.partition,
            at_ms=now_ms,
            accept_by_ms=now_ms + round(self._accept_s * 1000),
            deadline_ms=now_ms + round(timeout_s * 1000),
            endpoint=asked.endpoint,
            pool=asked.pool,
            model=asked.model,
            stream=asked.stream,
            body=asked.body,
        )
        pending = Pending(request, self._settings.realtime_buffer_bytes)
        self._pending[request_id] = pending
        self._room.take(tenant)
        loop = asyncio.get_running_loop()
        self._timers[request_id] = (
            loop.call_later(self._accept_s, self._not_accepted, pending),
            loop.call_later(timeout_s, pending.fail, Result.TIMEOUT, too_late()),
        )
        self._metrics.gauge(REALTIME_PENDING).set(len(self._pending))
        return pending

    async def send(self, pending: Pending) -> None:
        """Sends it to the workers. Raises KafkaBaseError, TimeoutError."""
        request = pending.request
        try:
            async with asyncio.timeout(self._accept_s):
                await self._producer.send(REALTIME_REQUEST, request.request_id, request)
        except (KafkaBaseError, TimeoutError):
            # The log may have it all the same; finish() then cancels it.
            pending.fail(Result.NO_WORKER, no_worker())
            raise

    def finish(self, pending: Pending) -> None:
        """Nobody waits for it any more; if its answer is not whole, its call is cut."""
        request_id, tenant = pending.request.request_id, pending.request.tenant
        del self._pending[request_id]
        self._room.free(tenant)
        for timer in self._timers.pop(request_id):
            timer.cancel()
        if pending.result not in (Result.ANSWERED, Result.REFUSED, Result.FAILED):
            self._cancel(request_id, left=pending.result in _BY_ITS_CLIENT)
        # Whoever was answering it was interrupted, where it is still open.
        pending.fail(Result.STOPPED, stopped())
        result = pending.result or Result.STOPPED
        self._metrics.counter(REALTIME_ANSWERS).labels(result.value).inc()
        self._metrics.gauge(REALTIME_PENDING).set(len(self._pending))

    def _check_room(self, tenant: str) -> None:
        """Raises RateLimited if there is no room, or the tenant has enough of it."""
        if self._room.full:
            result, whose = "full", "This server has"
        elif self._room.enough(tenant):
            result, whose = "share", "You have"
        else:
            return
        self._metrics.counter(REALTIME_ANSWERS).labels(result).inc()
        raise RateLimited(
            f"{whose} too many requests open at once; try again in a moment.",
            code="rate_limit_exceeded",
        )

    def _not_accepted(self, pending: Pending) -> None:
        if pending.worker is None:
            pending.fail(Result.NO_WORKER, no_worker())

    def _cancel(self, request_id: str, *, left: bool) -> None:
        record = RealtimeCancel(
            request_id=request_id,
            gateway=self._name,
            at_ms=self._clock.now_ms(),
            client_left=left,
        )
        self._cancels.start(self._send_cancel(record))

    async def _send_cancel(self, record: RealtimeCancel) -> None:
        try:
            await self._producer.send(REALTIME_CANCEL, self._name, record)
        except KafkaBaseError as error:
            # The call runs to its end, and nobody reads its answer.
            log.warning("A cancel was lost.", action="cancel_lost", error=type(error).__name__)

    async def _read(self, reader: LogReader, handle: Callable[[ReadRecord], None]) -> None:
        while True:
            try:
                for read in await reader.poll(_POLL_S):
                    handle(read)
            except KafkaBaseError as error:
                log.warning(
                    "The real-time lane can not be read.",
                    action="lane_not_read",
                    error=type(error).__name__,
                )
                await asyncio.sleep(_RETRY_S)

    def _replied(self, read: ReadRecord) -> None:
        record = read.record
        # Other gateways may share the partition.
        if not isinstance(record, RealtimeReplies) or record.gateway != self._name:
            return
        now_s = self._clock.monotonic_s()
        self._heard[record.process] = now_s
        for part in record.replies:
            pending = self._pending.get(part.request_id)
            if pending is not None:
                pending.offer(record, part, now_s)

    def _loaded(self, read: ReadRecord) -> None:
        load = read.record
        if not isinstance(load, RealtimeLoad):
            return
        self._heard[load.process] = self._clock.monotonic_s()
        before = self._started.get(load.worker)
        self._started[load.worker] = load.process
        if before is not None and before != load.process:
            for pending in list(self._pending.values()):
                if pending.worker == (load.worker, before):
                    pending.fail(Result.WORKER_LOST, worker_lost())

    async def _watch(self) -> None:
        last_s = self._clock.monotonic_s()
        while True:
            await asyncio.sleep(_WATCH_S)
            now_s = self._clock.monotonic_s()
            if now_s - last_s > _OWN_PAUSE_S:
                self._heard = dict.fromkeys(self._heard, now_s)
            last_s = now_s
            for pending in list(self._pending.values()):
                if pending.worker is None:
                    continue
                heard_s = self._heard.get(pending.worker[1], pending.accepted_at_s)
                if now_s - heard_s > self._silence_s:
                    pending.fail(Result.WORKER_LOST, worker_lost())
            gone = [p for p, heard_s in self._heard.items() if now_s - heard_s > _FORGET_S]
            for process in gone:
                del self._heard[process]


def _note_bug(error: BaseException) -> None:
    log.error("The real-time lane has a defect.", action="lane_broken", exc_info=error)
