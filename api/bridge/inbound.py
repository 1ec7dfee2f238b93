"""Makes batches of what tenants write to their topics.

    a tenant's topic ── Inbox ──┬─ a seal ─► its lines, read again ─► an input file ─► BatchCreate
      (a lane for each          │                                                        │
       of its partitions)       └─ what can't be a batch ─────────────────────► the results topic

After a seal was carried out, and once a second, it is committed how far a reader need not go back
(`Inbox.floor`), with how far this one had come (`Inbox.done`) as the commit's note. Whoever is
killed between a seal's steps leaves them to be done again, with the same ids and the same bytes:
the batch is made once; only the tenant may be told twice. If the batch was created already, nothing
but that is done again: its file may have been deleted since. At most one seal can be so: a lane
that can't commit a seal, because its partition was taken back, does nothing more.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import structlog

from api.bridge.lanes import Lanes, Worker
from api.bridge.ports import Again, Made, Producer, Submissions
from api.bridge.seal import Sealed, command, judged
from api.bridge.told import Told
from api.bridge.turns import Turns
from api.errors import ApiError, InvalidRequest
from api.files.upload import write_lines
from schemas.errors import SUBMISSION_MESSAGES, SubmissionCode
from schemas.metrics import Metrics
from schemas.records import BatchCreate, FileRecord
from schemas.topics import BATCH_COMMAND, BATCH_IN, FILE
from streams.domain.bridge.inbox import Action, Create, Inbox, Record, Reject, line_of
from streams.domain.clock import Clock
from streams.kafka.errors import KafkaBaseError
from streams.kafka.failpoint import reach
from streams.kafka.group_reader import Held, Mark, TopicPart
from streams.ports.object_store import ObjectStore, ObjectStoreError
from streams.settings import Settings

log = structlog.get_logger(__name__)

T = TypeVar("T")

_NOTE = re.compile(r"[0-9]{1,19}")
_POLL_S = 0.5
#: How often it is committed how far a partition was read, where no seal is carried out.
_COMMIT_S = 1.0
#: Seals that are carried out at the same time.
_SEALS_AT_ONCE = 4
#: Of one tenant.
_SEALS_OF_A_TENANT = 2
#: What waits of one tenant before its partitions are paused; less where that of all tenants would
#: be more than the second. Lines wait only behind a seal.
_SHARE_BYTES = 4 * 1024 * 1024
_MAX_WAITING_BYTES = 64 * 1024 * 1024
#: A record in memory, beside its key and value.
_RECORD_BYTES = 300
#: What can't be read or stored is tried again after the first of these, at last after the other.
_RETRY_S = (1.0, 30.0)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the bridge's reading half is made of.

    producer: for what makes a batch. telling: for tenants' topics; gives up what isn't taken.
    """

    submissions: Submissions
    again: Again
    made: Made
    producer: Producer
    telling: Producer
    store: ObjectStore
    clock: Clock
    settings: Settings
    metrics: Metrics


class Inbound:
    """Reads tenants' topics and makes batches: the partitions side by side, each in its order."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._lanes = Lanes(self._started)
        self._turns = Turns(_SEALS_AT_ONCE, _SEALS_OF_A_TENANT)

    @property
    def idle(self) -> bool:
        """Whether everything that came is done."""
        return all(lane.idle for lane in self._lanes)

    async def run(self) -> None:
        """Works until it is cancelled. Raises KafkaBaseError."""
        try:
            while True:
                await self.step(_POLL_S)
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Ends the work; what was not committed is done by whoever goes on."""
        await self._lanes.stop()

    async def step(self, timeout_s: float) -> None:
        """Takes in what has come, or waits for so long. Raises KafkaBaseError."""
        self._lanes.check()
        came = await self._parts.submissions.poll(timeout_s)
        await self._lanes.follow(dict(self._parts.submissions.held()))
        for part, records in came.items():
            if (lane := self._lanes.get(part)) is not None:
                lane.add(records)
        self._pause_floods()

    def _pause_floods(self) -> None:
        """Nothing more comes of a tenant of which too much waits; everybody else is read on."""
        waiting: Counter[str] = Counter()
        for lane in self._lanes:
            if lane.waiting_bytes:
                waiting[lane.tenant] += lane.waiting_bytes
        share = min(_SHARE_BYTES, _MAX_WAITING_BYTES // max(1, len(waiting)))
        for lane in self._lanes:
            if lane.waiting_bytes and waiting[lane.tenant] > share:
                lane.pause()

    def _started(self, part: TopicPart, held: Held) -> _Lane | None:
        tenant = BATCH_IN.tenant(self._parts.settings.topic_prefix, part.topic)
        return None if tenant is None else _Lane(self._parts, part, tenant, held, self._turns)


class _Lane(Worker):
    """One partition of a tenant's topic, in one time that it is this process's."""

    def __init__(
        self, parts: Parts, part: TopicPart, tenant: str, held: Held, turns: Turns
    ) -> None:
        """turns: for seals, which take time."""
        super().__init__(f"inbound-{part.partition}")
        self.waiting_bytes = 0
        self.tenant = tenant
        self._parts, self._part, self._since = parts, part, held.since
        self._told = Told(parts.telling, parts.settings, parts.metrics, tenant)
        self._inbox = _inbox(parts.settings, part, held.note)
        self._turns = turns
        self._waiting: deque[Record] = deque()
        self._paused = False
        self._committed: Mark | None = None
        #: Whether a seal was carried out, so that what comes now is nobody's unfinished work.
        self._sealed = False
        #: Whether what was tried last failed.
        self._failing = False
        #: Whether the partition was taken back: who gets it next does what waits here.
        self._lost = False
        self._news = asyncio.Event()

    @property
    def idle(self) -> bool:
        """Whether everything that came is done; also if it never will be, by this lane."""
        return not self._waiting or self._lost or self.ended

    def add(self, records: Sequence[Record]) -> None:
        """These came."""
        self._waiting.extend(records)
        self.waiting_bytes += sum(map(_size, records))
        self._news.set()

    def pause(self) -> None:
        """Nothing more of the partition comes until what waits is done."""
        if not self._paused:
            self._paused = True
            self._parts.submissions.pause(self._part)

    async def _work(self) -> None:
        clock = asyncio.get_running_loop().time
        due_s = clock() + _COMMIT_S
        while True:
            while self._waiting:
                await self._take(self._waiting[0])
                self.waiting_bytes -= _size(self._waiting.popleft())
                if clock() >= due_s:
                    await self._commit()
                    due_s = clock() + _COMMIT_S
            if self._paused:
                self._paused = False
                self._parts.submissions.resume(self._part)
            self._news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_COMMIT_S):
                    await self._news.wait()
                    continue
            await self._give_up_overdue()
            await self._commit()

    async def _take(self, record: Record) -> None:
        for action in self._inbox.feed(record):
            await self._carry_out(action)
            if isinstance(action, Create):
                await self._commit()
                self._sealed = True

    async def _carry_out(self, action: Action) -> None:
        if isinstance(action, Reject):
            await self._told.rejected(action)
            return
        batch = action.batch
        try:
            create = await self._created_before(action) or await self._create(action)
        except ApiError as error:
            await self._told.refused(batch.key.encode(), batch.batch_id, error)
        else:
            await self._told.accepted(create, batch.lines)
            reach("bridge.accepted_told")

    async def _created_before(self, seal: Create) -> BatchCreate | None:
        """The create, if whoever had the partition before wrote it and was killed then."""
        if self._sealed:
            return None
        return await self._patiently(lambda: self._look_for(seal))

    async def _look_for(self, seal: Create) -> BatchCreate | None:
        async with self._turns.turn(self.tenant, failing=self._failing):
            return await self._parts.made.created(seal.batch.batch_id, seal.at_ms)

    async def _create(self, seal: Create) -> BatchCreate:
        batch, parts = seal.batch, self._parts
        sealed = judged(seal, self.tenant, parts.settings.completion_windows)
        file = await self._patiently(lambda: self._store(sealed))
        reach("bridge.file_stored")
        create = command(sealed, file)
        if self._sealed or not await self._patiently(
            lambda: parts.made.deleted(file.file_id, seal.at_ms)
        ):
            await self._while_held()
            await parts.producer.send(FILE, file.file_id, file)
        reach("bridge.file_recorded")
        await self._while_held()
        await parts.producer.send(BATCH_COMMAND, create.batch_id, create)
        reach("bridge.batch_created")
        log.info(
            "A batch came through Kafka.",
            action="batch_submitted",
            tenant=sealed.tenant,
            batch_id=batch.batch_id,
            lines=batch.lines,
        )
        return create

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Does it, again and again while the store, reading topics again or a commit fails.

        A full disk or a partition without a leader costs time, but no batch.
        """
        wait_s, longest_s = _RETRY_S
        while True:
            try:
                done = await work()
                self._failing = False
                return done
            except (ObjectStoreError, KafkaBaseError) as error:
                log.warning(
                    "A tenant's topic can't be worked off now; trying again.",
                    action="submission_retry",
                    tenant=self.tenant,
                    error=type(error).__name__,
                    why=str(error),
                    wait_s=wait_s,
                )
            self._failing = True
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, longest_s)

    async def _store(self, sealed: Sealed) -> FileRecord:
        batch, parts = sealed.create.batch, self._parts
        async with (
            self._turns.turn(self.tenant, failing=self._failing),
            aclosing(self._lines(sealed.create)) as lines,
        ):
            return await write_lines(
                parts.store,
                parts.settings,
                lines,
                tenant=sealed.tenant,
                filename=f"{batch.batch_id}.jsonl",
                now_ms=sealed.create.at_ms,
                file_id=batch.file_id,
            )

    async def _lines(self, create: Create) -> AsyncGenerator[bytes, None]:
        batch, found = create.batch, 0
        again = self._parts.again.read(self._part, batch.offset, create.sealed_at)
        async with aclosing(again) as records:
            async for record in records:
                line = line_of(record, batch.key)
                if line is not None:
                    found += 1
                    yield line
        if found != batch.lines:
            code = SubmissionCode.LINES_GONE
            raise InvalidRequest(SUBMISSION_MESSAGES[code], code=code.value)

    async def _give_up_overdue(self) -> None:
        # What waits here is behind the reader's position, and may be the seal.
        if await self._parts.submissions.at_end(self._part) and not self._waiting:
            for action in self._inbox.at_end(self._parts.clock.now_ms()):
                await self._carry_out(action)

    async def _commit(self) -> None:
        if self._inbox.floor is None:
            return
        mark = Mark(self._inbox.floor, str(self._inbox.done))
        if mark == self._committed:
            return
        commit = self._parts.submissions.commit
        if not await self._patiently(lambda: commit(self._part, self._since, mark)):
            await self._park()
        self._committed = mark

    async def _while_held(self) -> None:
        """Goes on only if the partition is still this lane's, as far as this process knows."""
        held = self._parts.submissions.held().get(self._part)
        if held is None or held.since != self._since:
            await self._park()

    async def _park(self) -> NoReturn:
        """Waits to be stopped. What it did more would be done again by who has the partition."""
        self._lost = True
        while True:
            await asyncio.Event().wait()


def _inbox(settings: Settings, part: TopicPart, note: str) -> Inbox:
    limit = min(settings.max_batch_file_bytes, settings.max_file_bytes)
    # A note of another's making is as good as none.
    done = int(note) if _NOTE.fullmatch(note) else 0
    return Inbox(part.topic, part.partition, max_bytes=limit, done=done)


def _size(record: Record) -> int:
    return _RECORD_BYTES + len(record.key or b"") + len(record.value or b"")
