"""Releases lines: asks the dispatcher what runs next, reads it, and puts it on line.ready.

One of these lives as long as an assignment of partitions. Whatever may allow a release (credits,
a batch, an outcome, a plan page) wakes it at once; nothing is polled.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import structlog

from schemas.records import BatchForecasts, ControllerLoad, OpenRetry, ReadyLines, WorkerLoad
from schemas.topics import BATCH_FORECAST, CAPACITY, LINE_READY, Topic
from streams.background import Tasks
from streams.controller.books import Books
from streams.controller.forecasts import Forecasts, Foresaw
from streams.controller.input_lines import InputLines, Source
from streams.controller.loads import Load
from streams.controller.log import LineEffect
from streams.controller.outstanding import FoundSlice
from streams.controller.ports import Guard, Sender
from streams.controller.routes import Routes
from streams.domain.batch.effects import CloseLines, OpenLines, SettleLines, SteerLines
from streams.domain.batch.row import snapshot_of
from streams.domain.batch.state import InProgress, Request
from streams.domain.clock import Clock
from streams.domain.dispatch.dispatcher import Dispatcher, Want
from streams.domain.dispatch.lane import OpenBatch
from streams.domain.dispatch.slice import Slice
from streams.domain.enqueued.tenants import Tenants
from streams.domain.ledger import Ledger, bitmap
from streams.domain.plan import PlanError
from streams.kafka.failpoint import reach
from streams.ports.object_store import ObjectStoreError

log = structlog.get_logger(__name__)

#: Slices and plan pages that are read or sent at the same time.
_AT_ONCE = 64
#: The backlog is published this often, and at once when it begins or ends somewhere.
LOAD_PERIOD_S = 1.0
#: After a failed read a batch waits this long, then twice as long each time.
_FIRST_BACKOFF_MS, _MAX_BACKOFF_MS = 200, 30_000
#: What is being sent when an assignment ends may finish: its successor then finds it on the topic.
_STOP_S = 1.0


@dataclass(slots=True)
class _Running:
    """A batch whose lines may be released. deadline_ms: the end of its window as it is now."""

    request: Request
    source: Source
    deadline_ms: int


class Releaser:
    """The dispatcher of one assignment, and its hands."""

    def __init__(
        self,
        controller: str,
        books: Books,
        lines: InputLines,
        routes: Routes,
        tenants: Tenants,
        sender: Sender,
        guard: Guard,
        clock: Clock,
        foresaw: Foresaw,
        broken: Callable[[BaseException], None],
    ) -> None:
        self._controller = controller
        self._books = books
        self._lines = lines
        self._routes = routes
        self._sender = sender
        self._guard = guard
        self._clock = clock
        self._dispatcher = Dispatcher(controller)
        self._tenants = tenants
        self._forecasts = Forecasts(controller, self._dispatcher, tenants, foresaw)
        self._foresaw = foresaw
        self._running: dict[str, _Running] = {}
        self._failures: Counter[str] = Counter()
        self._wake = asyncio.Event()
        self._tasks = Tasks(broken)
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._load: ControllerLoad | None = None
        self._live = True

    def begin(self, found: list[FoundSlice]) -> None:
        """Takes over all running batches, of whose lines these are out."""
        for batch in self._books.live.values():
            if isinstance(batch, InProgress):
                self._open(batch)
        now_ms = self._clock.now_ms()
        for slice_ in found:
            self._dispatcher.found_out(
                slice_.batch_id, slice_.pool, slice_.place, slice_.attempts, now_ms
            )

    def apply(self, effect: LineEffect) -> None:
        """A batch was opened, steered or closed, or lines of it came in."""
        match effect:
            case OpenLines():
                self._open(effect.batch)
            case CloseLines():
                self._dispatcher.close(effect.batch_id)
                self._running.pop(effect.batch_id, None)
                self._failures.pop(effect.batch_id, None)
            case SettleLines():
                self._dispatcher.settle(
                    effect.batch_id, effect.accepted, effect.retries, self._clock.now_ms()
                )
                self._spent(effect.batch_id)
            case SteerLines():
                self._steer(effect)
        self._wake.set()

    def hear(self, load: Load, heard_at_ms: int) -> None:
        """A worker or another controller said how it is doing."""
        if isinstance(load, WorkerLoad):
            self._dispatcher.worker_load(load, heard_at_ms)
        else:
            self._dispatcher.controller_load(load, heard_at_ms)
        self._wake.set()

    def make_room(self, moved: Collection[str] | None = None) -> None:
        """These batches may go on now and couldn't, or could, wherever they are; None: any may."""
        for batch_id in self._running if moved is None else moved:
            running = self._running.get(batch_id)
            if running is not None:
                held = self._tenants.waits(running.request.tenant, batch_id)
                self._dispatcher.hold(batch_id, held)
        self._wake.set()

    async def work(self) -> None:
        """Releases, until the assignment ends."""
        while self._live:
            self._wake.clear()
            slices = self._dispatcher.release(self._clock.now_ms())
            for want in self._dispatcher.wants():
                self._tasks.start(self._load_rows(want))
            for slice_ in slices:
                self._tasks.start(self._send(slice_))
            self._tell_others()
            for forecasts in self._forecasts.due(self._clock.now_ms()):
                self._tasks.start(self._publish(BATCH_FORECAST, forecasts))
            if slices:
                # There may be more than one call releases; others get their turn in between.
                await asyncio.sleep(0)
            else:
                await self._sleep()

    async def stop(self) -> None:
        """The assignment has ended: nothing more is sent from this moment on."""
        self._live = False
        self._wake.set()
        self._foresaw(())
        await self._tasks.stop(_STOP_S)

    async def _sleep(self) -> None:
        due_at_ms = self._dispatcher.due_at()
        now_ms = self._clock.now_ms()
        pause_s = LOAD_PERIOD_S if due_at_ms is None else (due_at_ms - now_ms) / 1000
        try:
            async with asyncio.timeout(min(max(pause_s, 0.001), LOAD_PERIOD_S)):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _spent(self, batch_id: str) -> None:
        """Lines of a batch are in. Its snapshot tells so a second later, which may be too late."""
        batch = self._books.live.get(batch_id)
        if batch is None or not self._tenants.budgets.applies(batch.request.tenant):
            return
        self.make_room(self._tenants.budgets.hear_batch(snapshot_of(batch)))

    def _steer(self, effect: SteerLines) -> None:
        running = self._running.get(effect.batch_id)
        if running is None:
            return
        terms = effect.terms
        running.deadline_ms = terms.expires_at_ms
        self._dispatcher.steer(
            effect.batch_id, terms.priority, terms.expires_at_ms, paused=effect.paused
        )

    def _open(self, batch: InProgress) -> None:
        request, work = batch.request, batch.work
        if request.input is None:
            return
        batch_id = request.batch_id
        ledgers = self._books.ledgers.get(batch_id, {})
        pools, lanes = self._routes.of(work.models, prompts=bool(work.prompts))
        if not all(pools):
            log.warning(
                "No upstream serves some models of a batch any more; those lines will expire.",
                action="model_without_upstream",
                batch_id=batch_id,
            )
        source = Source(request.input, work.plan, work.total, lanes, len(work.models))
        self._running[batch_id] = _Running(request, source, batch.terms.expires_at_ms)
        self._dispatcher.open(
            OpenBatch(
                batch_id=batch_id,
                tenant=request.tenant,
                deadline_ms=batch.terms.expires_at_ms,
                created_at_ms=request.created_at_ms,
                total=work.total,
                routes=pools,
                done=bytes(bitmap(ledgers, work.total)),
                retries=_open_retries(ledgers),
                priority=batch.terms.priority,
                paused=batch.paused_at_ms is not None,
                held=self._tenants.waits(request.tenant, batch_id),
            )
        )

    async def _load_rows(self, want: Want) -> None:
        batch_id = want.lane.batch.batch_id
        async with self._room:
            running = self._running.get(batch_id)
            if running is None:
                return
            try:
                rows, cursor = await self._lines.rows(
                    running.source, want.lane.number, want.cursor, want.rows
                )
            except (ObjectStoreError, PlanError) as error:
                retry_at_ms = self._failed(batch_id, error)
                self._dispatcher.not_loaded(want, retry_at_ms)
            else:
                self._dispatcher.loaded(want, rows, cursor)
            self._wake.set()

    async def _send(self, slice_: Slice) -> None:
        batch_id = slice_.batch_id
        async with self._room:
            running = self._running.get(batch_id)
            if running is None:
                self._dispatcher.returned(slice_, 0)
                return
            try:
                record = await self._read(slice_, running)
            except (ObjectStoreError, PlanError) as error:
                retry_at_ms = self._failed(batch_id, error)
                self._dispatcher.returned(slice_, retry_at_ms)
                if slice_.lane is not None:
                    self._dispatcher.block(slice_.lane, retry_at_ms)
                self._wake.set()
                return
            self._failures.pop(batch_id, None)
            await self._guard.wait()
            if not self._live or not self._dispatcher.is_open(batch_id):
                self._dispatcher.returned(slice_, 0)
                return
            place = await self._sender.send_to(LINE_READY, slice_.partition, record, batch_id)
            reach("controller.lines_released")
            self._dispatcher.sent(slice_, place.offset)

    async def _read(self, slice_: Slice, running: _Running) -> ReadyLines:
        lines = await self._lines.lines(running.source, slice_.lines)
        batch = running.request
        return ReadyLines(
            batch_id=slice_.batch_id,
            tenant=batch.tenant,
            at_ms=self._clock.now_ms(),
            endpoint=batch.endpoint,
            pool=slice_.pool,
            deadline_ms=running.deadline_ms,
            created_at_ms=batch.created_at_ms,
            tail=slice_.tail,
            pins=running.source.pins if any(line.pin for line in lines) else None,
            lines=lines,
        )

    def _failed(self, batch_id: str, error: Exception) -> int:
        failures = self._failures[batch_id] = min(self._failures[batch_id] + 1, 16)
        pause_ms = min(_FIRST_BACKOFF_MS << failures - 1, _MAX_BACKOFF_MS)
        log.warning(
            "Could not read a batch's input; trying again.",
            action="input_not_read",
            batch_id=batch_id,
            error=type(error).__name__,
            pause_ms=pause_ms,
        )
        return self._clock.now_ms() + pause_ms

    def _tell_others(self) -> None:
        load = self._dispatcher.load(self._clock.now_ms())
        last = self._load
        recent = last is not None and load.at_ms - last.at_ms < LOAD_PERIOD_S * 1000
        if last is not None and recent and _shape(load) == _shape(last):
            return
        self._load = load
        self._tasks.start(self._publish(CAPACITY, load))

    async def _publish(self, topic: Topic, record: ControllerLoad | BatchForecasts) -> None:
        await self._guard.wait()
        await self._sender.send(topic, record.controller, record)


def _shape(load: ControllerLoad) -> list[tuple[str, int]]:
    return [(pool.pool, pool.tenants) for pool in load.pools]


def _open_retries(ledgers: Mapping[int, Ledger]) -> tuple[OpenRetry, ...]:
    return tuple(retry for ledger in ledgers.values() for retry in ledger.retries.values())
