"""Makes batches of what tenants write to their topics.

    a tenant's topic ── Inbox ──┬─ a seal ─► its lines, read again ─► an input file ─► BatchCreate
      (all partitions           │                                                        │
       of one group)            └─ what can't be a batch ─────────────────────► the results topic

After a seal was carried out, and once a second, it is committed how far a reader need not go back
(`Inbox.floor`), with how far this one had come (`Inbox.done`) as the commit's note. Whoever is
killed between a seal's steps leaves them to be done again, with the same ids and the same bytes:
the batch is made once; only the tenant may be told twice.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from api.bridge.ports import Again, Producer, Submissions
from api.bridge.seal import Sealed, command, judged
from api.bridge.told import Told
from api.errors import ApiError, InvalidRequest
from api.upload import write_lines
from schemas.errors import SUBMISSION_MESSAGES, SubmissionCode
from schemas.metrics import Metrics
from schemas.records import FileRecord
from schemas.topics import BATCH_COMMAND, BATCH_IN, FILE
from streams.domain.bridge.inbox import Create, Inbox, Record, Reject, line_of
from streams.domain.clock import Clock
from streams.kafka.failpoint import reach
from streams.kafka.group_reader import Mark, TopicPart
from streams.ports.object_store import ObjectStore, ObjectStoreError
from streams.settings import Settings

log = structlog.get_logger(__name__)

_NOTE = re.compile(r"[0-9]{1,19}")
_POLL_S = 0.5
#: How often it is committed how far the partitions were read.
_COMMIT_S = 1.0
#: A store that fails is asked again after the first of these, and at last after the second.
_STORE_RETRY_S = (1.0, 30.0)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the bridge's reading half is made of."""

    submissions: Submissions
    again: Again
    producer: Producer
    store: ObjectStore
    clock: Clock
    settings: Settings
    metrics: Metrics


@dataclass(slots=True)
class _Reading:
    """One partition of a tenant's topic, in one time that it is this process's.

    committed: what was last committed in it.
    """

    tenant: str
    since: int
    inbox: Inbox
    committed: Mark | None = None


class Inbound:
    """Reads tenants' topics and makes batches."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._told = Told(parts.producer, parts.settings, parts.metrics)
        self._readings: dict[TopicPart, _Reading] = {}
        self._commit_at = 0.0

    async def run(self) -> None:
        """Works until it is cancelled. Raises KafkaBaseError."""
        while True:
            await self.step(_POLL_S)

    async def step(self, timeout_s: float) -> None:
        """Does what has come, or waits for so long. Raises KafkaBaseError."""
        came = await self._parts.submissions.poll(timeout_s)
        self._follow_assignment()
        for part, records in came.items():
            if part in self._readings:
                await self._take(part, records)
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._commit_at:
            self._commit_at = now_s + _COMMIT_S
            await self._give_up_overdue()
            await self._commit(*self._readings)

    def _follow_assignment(self) -> None:
        held = self._parts.submissions.held()
        for part, reading in list(self._readings.items()):
            # Read anew, it is read from its last commit, and the lines since then come again.
            if part not in held or held[part].since != reading.since:
                del self._readings[part]
        for part, now in held.items():
            tenant = BATCH_IN.tenant(self._parts.settings.topic_prefix, part.topic)
            if part not in self._readings and tenant is not None:
                self._readings[part] = _Reading(tenant, now.since, self._inbox(part, now.note))

    def _inbox(self, part: TopicPart, note: str) -> Inbox:
        settings = self._parts.settings
        limit = min(settings.max_batch_file_bytes, settings.max_file_bytes)
        # A note of another's making is as good as none.
        done = int(note) if _NOTE.fullmatch(note) else 0
        return Inbox(part.topic, part.partition, max_bytes=limit, done=done)

    async def _take(self, part: TopicPart, records: Sequence[Record]) -> None:
        reading = self._readings[part]
        for record in records:
            for action in reading.inbox.feed(record):
                await self._carry_out(part, reading.tenant, action)
                if isinstance(action, Create):
                    await self._commit(part)

    async def _carry_out(self, part: TopicPart, tenant: str, action: Create | Reject) -> None:
        if isinstance(action, Reject):
            await self._told.rejected(tenant, action)
            return
        try:
            await self._create(part, judged(action, tenant, self._windows()))
        except ApiError as error:
            batch = action.batch
            await self._told.refused(tenant, batch.key.encode(), batch.batch_id, error)

    async def _create(self, part: TopicPart, sealed: Sealed) -> None:
        batch, parts = sealed.create.batch, self._parts
        file = await _patiently(
            lambda: write_lines(
                parts.store,
                parts.settings,
                self._lines(part, sealed.create),
                tenant=sealed.tenant,
                filename=f"{batch.batch_id}.jsonl",
                now_ms=sealed.create.at_ms,
                file_id=batch.file_id,
            )
        )
        reach("bridge.file_stored")
        create = command(sealed, file)
        await parts.producer.send(FILE, file.file_id, file)
        reach("bridge.file_recorded")
        await parts.producer.send(BATCH_COMMAND, create.batch_id, create)
        reach("bridge.batch_created")
        await self._told.accepted(create, batch.lines)
        reach("bridge.accepted_told")
        log.info(
            "A batch came through Kafka.",
            action="batch_submitted",
            tenant=sealed.tenant,
            batch_id=batch.batch_id,
            lines=batch.lines,
        )

    async def _lines(self, part: TopicPart, create: Create) -> AsyncIterator[bytes]:
        batch, found = create.batch, 0
        async for record in self._parts.again.read(part, batch.offset, create.sealed_at):
            line = line_of(record, batch.key)
            if line is not None:
                found += 1
                yield line
        if found != batch.lines:
            code = SubmissionCode.LINES_GONE
            raise InvalidRequest(SUBMISSION_MESSAGES[code], code=code.value)

    async def _give_up_overdue(self) -> None:
        now_ms = self._parts.clock.now_ms()
        for part, reading in list(self._readings.items()):
            if await self._parts.submissions.at_end(part):
                for action in reading.inbox.at_end(now_ms):
                    await self._carry_out(part, reading.tenant, action)

    async def _commit(self, *parts: TopicPart) -> None:
        marks = {}
        for part in parts:
            reading = self._readings[part]
            if reading.inbox.floor is not None:
                mark = Mark(reading.inbox.floor, str(reading.inbox.done))
                if mark != reading.committed:
                    marks[part] = reading.committed = mark
        if marks:
            await self._parts.submissions.commit(marks)

    def _windows(self) -> dict[str, int]:
        return self._parts.settings.completion_windows


async def _patiently(write: Callable[[], Awaitable[FileRecord]]) -> FileRecord:
    """Writes, again and again while the store fails: a full disk costs time, but no batch."""
    wait_s, longest_s = _STORE_RETRY_S
    while True:
        try:
            return await write()
        except ObjectStoreError as error:
            log.warning(
                "The object store does not take a batch's lines; trying again.",
                action="store_failed",
                error=type(error).__name__,
                wait_s=wait_s,
            )
        await asyncio.sleep(wait_s)
        wait_s = min(wait_s * 2, longest_s)
