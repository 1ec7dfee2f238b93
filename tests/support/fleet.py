"""The rest of the pipeline, scripted, around real controller processes on a real broker.

commands in by hand ──► controllers ──► file.task ──► this file-worker ──► batch.event
                                   └──► line.ready ──► this worker and collector ──► batch.event
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas.records import (
    AssembledFile,
    AssembleReason,
    AssembleTask,
    BatchAssembled,
    BatchCreate,
    BatchSnapshot,
    BatchStatus,
    BatchValidated,
    CollectedLine,
    FileRecord,
    IntakeTask,
    LineUsage,
    ObjectRef,
    OutcomeKind,
    PartitionSeen,
    PoolLoad,
    ReadyLines,
    SegmentWritten,
    Usage,
    UsageRecorded,
    WorkerLoad,
)
from schemas.topics import (
    BATCH_COMMAND,
    BATCH_EVENT,
    BATCH_STATUS,
    CAPACITY,
    FILE,
    FILE_TASK,
    LINE_DONE,
    LINE_READY,
    USAGE_RECORDED,
)
from streams.adapters.object_store import open_store
from streams.domain.clock import SystemClock
from streams.domain.plan import PlanBuilder
from streams.kafka.admin import apply_topics
from streams.kafka.connection import connection
from streams.kafka.errors import TopicMissing
from streams.kafka.groups import group_name
from streams.kafka.producer import RecordProducer
from streams.kafka.reader import ReadRecord, TopicReader
from streams.settings import Settings
from tests.support.waiting import eventually

TENANT = "tenant-a"
PARTITIONS = 2
ENDPOINT = "/v1/chat/completions"
_ENDED = (BatchStatus.COMPLETED, BatchStatus.CANCELLED, BatchStatus.EXPIRED, BatchStatus.FAILED)

#: How an attempt at (batch, line, attempt) ends; None hangs until the test says otherwise.
Fate = Callable[[str, int, int], OutcomeKind | None]


def always_completed(_batch: str, _line: int, _attempt: int) -> OutcomeKind:
    """Every line works at once."""
    return OutcomeKind.COMPLETED


@dataclass(eq=False)
class Held:
    """A slice that the scripted worker has read."""

    partition: int
    offset: int
    ready: ReadyLines
    left: set[int] = field(default_factory=set)


class Fleet:
    """Topics of one test, its controllers, and everybody else."""

    def __init__(self, settings: Settings, folder: Path, *, credits_: int = 64) -> None:
        self.settings = settings
        self.folder = folder
        self.store = open_store(settings.resolved_store_url)
        self.producer = RecordProducer(settings)
        self.credits = {"up": credits_}
        self.fate: Fate = always_completed
        self.answer_tasks = True
        self.released: Counter[tuple[str, int, int]] = Counter()
        self.held: list[Held] = []
        self.tails: dict[str, list[bool]] = {}
        self.texts: dict[tuple[str, int], bytes | None] = {}
        self.tasks: list[IntakeTask | AssembleTask] = []
        self.snapshots: dict[str, list[BatchSnapshot]] = {}
        self.files: dict[str, FileRecord] = {}
        self.usage: dict[str, dict[int, LineUsage]] = {}
        self.models: dict[str, list[str]] = {}
        self._clock = SystemClock()
        topics = [BATCH_STATUS, USAGE_RECORDED, FILE, FILE_TASK, LINE_READY]
        self._reader = TopicReader(settings, topics)
        self._commits = AIOKafkaConsumer(
            **connection(settings),
            group_id=group_name(settings, "batch-worker"),
            enable_auto_commit=False,
        )
        self._next_offset = dict.fromkeys(range(PARTITIONS), 0)
        self._committed = dict.fromkeys(range(PARTITIONS), 0)
        self._running: list[asyncio.Task[None]] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        table = {
            "upstreams": [{"name": "up", "base_url": "http://127.0.0.1:1/v1", "models": ["*"]}]
        }
        (folder / "upstreams.yaml").write_text(json.dumps(table))

    # -- life ------------------------------------------------------------------------------

    async def start(self) -> None:
        keyed = {t.name: PARTITIONS for t in (LINE_DONE, BATCH_EVENT, BATCH_COMMAND)}
        await apply_topics(self.settings, {**keyed, LINE_READY.name: PARTITIONS})
        await self.producer.start()
        await eventually(self._reader_started, 10, "the broker knows the new topics")
        await self._commits.start()
        names = LINE_READY.full_name(self.settings.topic_prefix)
        self._commits.assign([TopicPartition(names, p) for p in range(PARTITIONS)])
        self._running = [asyncio.create_task(work()) for work in (self._read, self._tell)]

    async def _reader_started(self) -> bool:
        try:
            await self._reader.start("beginning")
        except TopicMissing:
            return False
        return True

    async def stop(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for task in self._running:
            task.cancel()
        done = await asyncio.gather(*self._running, return_exceptions=True)
        await self._commits.stop()
        await self.producer.stop()
        await self._reader.stop()
        for result in done:
            if isinstance(result, Exception):
                raise result

    def run(self, failpoint: str = "", instance: str = "0") -> subprocess.Popen[bytes]:
        """Starts a controller; a failpoint ends it there."""
        settings = self.settings
        env = {
            **os.environ,
            "BACKHAUL_KAFKA": settings.kafka,
            "BACKHAUL_KAFKA_REPLICAS": "1",
            "BACKHAUL_KAFKA_IDEMPOTENCE": str(settings.kafka_idempotence),
            "BACKHAUL_SESSION_TIMEOUT_S": str(settings.session_timeout_s),
            "BACKHAUL_TOPIC_PREFIX": settings.topic_prefix,
            "BACKHAUL_DATA_DIR": str(settings.data_dir),
            "BACKHAUL_UPSTREAMS_FILE": str(self.folder / "upstreams.yaml"),
            "BACKHAUL_INSTANCE": instance,
            "BACKHAUL_FAILPOINT": failpoint,
        }
        if settings.prices_file is not None:
            env["BACKHAUL_PRICES_FILE"] = str(settings.prices_file)
        with (self.folder / f"controller-{len(self._processes)}.log").open("wb") as log:
            command = [sys.executable, "-m", "streams", "controller"]
            process = subprocess.Popen(command, env=env, stderr=log)
        self._processes.append(process)
        return process

    # -- what a test does ------------------------------------------------------------------

    async def create(
        self,
        batch_id: str,
        lines: int,
        *,
        tenant: str = TENANT,
        window_s: int = 3600,
        key_id: str | None = None,
    ) -> None:
        """Uploads an input file of so many lines and creates the batch."""
        data = b"".join(b"line %d of %s\n" % (n, batch_id.encode()) for n in range(lines))
        key = f"files/{tenant}/{batch_id}"
        await self.store.put(key, data)
        command = BatchCreate(
            command_id=f"cmd_{batch_id}",
            batch_id=batch_id,
            tenant=tenant,
            at_ms=self._clock.now_ms(),
            endpoint=ENDPOINT,
            input_file_id="file-1",
            input=ObjectRef(key=key, size_bytes=len(data)),
            input_purpose="batch",
            completion_window="1h",
            window_s=window_s,
            metadata={},
            request_hash="",
            key_id=key_id,
        )
        await self.producer.send(BATCH_COMMAND, batch_id, command)

    def status(self, batch_id: str) -> str:
        """The status of the newest snapshot."""
        kept = self.snapshots.get(batch_id)
        return kept[-1].status.value if kept else ""

    async def ended(self, batch_id: str, within_s: float = 40) -> BatchSnapshot:
        """Waits for the batch's end."""

        def is_over() -> bool:
            kept = self.snapshots.get(batch_id)
            return bool(kept) and kept[-1].status in _ENDED if kept else False

        await eventually(is_over, within_s, f"{batch_id} ends; it is {self.status(batch_id)}")
        return self.snapshots[batch_id][-1]

    def check(self, batch_id: str, completed: int, failed: int) -> None:
        """The end state is exact: counts, bill, files, and what callers saw on the way."""
        kept = self.snapshots[batch_id]
        last = kept[-1]
        assert (last.completed, last.failed) == (completed, failed)
        bill = self.usage.get(batch_id, {})
        assert sum(line.completed for line in bill.values()) == completed
        assert last.usage.input_tokens == sum(line.usage.input_tokens for line in bill.values())
        assert all(line.usage.input_tokens == n + 1 for n, line in bill.items())
        times: dict[str, int] = {}
        for snapshot in kept:
            assert snapshot.completed + snapshot.failed <= snapshot.total
            for name in ("in_progress_at_ms", "finalizing_at_ms", "cancelling_at_ms"):
                value = getattr(snapshot, name)
                if value is not None:
                    assert times.setdefault(name, value) == value

    def spent(self, batch_id: str) -> int:
        """Input tokens billed so far."""
        return sum(line.usage.input_tokens for line in self.usage.get(batch_id, {}).values())

    async def finish_held(self, most: int = 1 << 30) -> None:
        """Ends slices that hang, as completed."""
        for held in list(self.held)[:most]:
            await self._finish(held, sorted(held.left), lambda *_: OutcomeKind.COMPLETED)

    def holds(self) -> int:
        """Lines that the worker holds."""
        return sum(len(held.left) for held in self.held)

    # -- everybody else --------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            for read in await self._reader.poll(0.05):
                await self._take(read)

    async def _take(self, read: ReadRecord) -> None:
        match read.record:
            case BatchSnapshot() as snapshot:
                kept = self.snapshots.setdefault(snapshot.batch_id, [])
                if not kept or snapshot.revision >= kept[-1].revision:
                    kept.append(snapshot)
            case UsageRecorded() as usage:
                self._bill(usage)
            case FileRecord() as file:
                self.files[file.file_id] = file
            case IntakeTask() | AssembleTask() as task:
                self.tasks.append(task)
                if self.answer_tasks:
                    await self._answer(task)
            case ReadyLines() as ready:
                await self._run(Held(read.partition, read.offset, ready))

    def _bill(self, usage: UsageRecorded) -> None:
        lines = self.usage.setdefault(usage.batch_id, {})
        for line in usage.lines:
            assert lines.setdefault(line.line, line) == line

    async def _answer(self, task: IntakeTask | AssembleTask) -> None:
        common: dict[str, Any] = {
            "task_id": task.task_id,
            "batch_id": task.batch_id,
            "tenant": task.tenant,
        }
        at_ms = self._clock.now_ms()
        event: BatchValidated | BatchAssembled
        if isinstance(task, IntakeTask):
            builder, offset = PlanBuilder(), 0
            models = self.models.get(task.batch_id, ["m"])
            for number, line in enumerate((await self.store.get(task.input.key)).splitlines()):
                builder.add(offset, len(line), number % len(models))
                offset += len(line) + 1
            plan = builder.build()
            key = f"batches/{task.batch_id}/plan/{len(self.tasks)}"
            await self.store.put(key, plan)
            event = BatchValidated(
                **common,
                at_ms=at_ms,
                plan=ObjectRef(key=key, size_bytes=len(plan)),
                total=builder.rows,
                models=tuple(models),
                estimated_input_tokens=0,
            )
        else:
            error = task.total - task.completed
            event = BatchAssembled(
                **common,
                at_ms=at_ms,
                output=self._file(task, "out", task.completed),
                error=self._file(task, "err", error),
            )
        await self.producer.send(BATCH_EVENT, task.batch_id, event)

    def _file(self, task: AssembleTask, kind: str, lines: int) -> AssembledFile | None:
        name = f"file-{kind}-{task.batch_id}-{len(self.tasks)}"
        ref = ObjectRef(key=f"batches/{task.batch_id}/assembled/{name}", size_bytes=1)
        return AssembledFile(file_id=name, object=ref, lines=lines) if lines else None

    async def _run(self, held: Held) -> None:
        ready = held.ready
        self._next_offset[held.partition] = held.offset + 1
        self.tails.setdefault(ready.batch_id, []).append(ready.tail)
        for line in ready.lines:
            self.released[ready.batch_id, line.line, line.attempt] += 1
            self.texts[ready.batch_id, line.line] = line.raw
        held.left = {line.line for line in ready.lines}
        self.held.append(held)
        now = [
            line.line
            for line in ready.lines
            if self.fate(ready.batch_id, line.line, line.attempt) is not None
        ]
        await self._finish(held, now, self.fate)

    async def _finish(self, held: Held, numbers: list[int], fate: Fate) -> None:
        ready = held.ready
        attempts = {line.line: line.attempt for line in ready.lines}
        lines = []
        for n in numbers:
            kind = fate(ready.batch_id, n, attempts[n]) or OutcomeKind.COMPLETED
            retry = kind is OutcomeKind.RETRY
            lines.append(
                CollectedLine(
                    line=n,
                    done_offset=held.offset,
                    kind=kind,
                    attempt=attempts[n],
                    retry_at_ms=self._clock.now_ms() + 100 if retry else 0,
                    model=-1 if retry else 0,
                    usage=Usage() if retry else Usage(input_tokens=n + 1),
                )
            )
        if lines:
            event = SegmentWritten(
                segment_id=f"{held.partition}-{held.offset}-{numbers[0]}",
                batch_id=ready.batch_id,
                tenant=ready.tenant,
                at_ms=self._clock.now_ms(),
                partition=0,
                models=("m",),
                lines=tuple(lines),
            )
            await self.producer.send(BATCH_EVENT, ready.batch_id, event)
        held.left -= set(numbers)
        if not held.left:
            self.held.remove(held)
        await self._publish()

    async def _tell(self) -> None:
        while True:
            await self._publish()
            await self._commit()
            await asyncio.sleep(0.3)

    async def _publish(self) -> None:
        held = Counter[str]()
        for slice_ in self.held:
            held[slice_.ready.pool] += len(slice_.left)
        load = WorkerLoad(
            worker="batch-worker-0",
            at_ms=self._clock.now_ms(),
            partitions=tuple(
                PartitionSeen(partition=p, next_offset=at, committed=self._committed[p])
                for p, at in self._next_offset.items()
            ),
            pools=tuple(
                PoolLoad(pool=pool, credits=credits_, held=held[pool])
                for pool, credits_ in self.credits.items()
            ),
        )
        await self.producer.send(CAPACITY, load.worker, load)

    async def _commit(self) -> None:
        full_name = LINE_READY.full_name(self.settings.topic_prefix)
        for partition, seen in self._next_offset.items():
            running = [h.offset for h in self.held if h.partition == partition]
            self._committed[partition] = min(running, default=seen)
        await self._commits.commit(
            {TopicPartition(full_name, p): at for p, at in self._committed.items()}
        )

    @property
    def reasons(self) -> list[AssembleReason]:
        """Why lines were frozen."""
        return [task.reason for task in self.tasks if isinstance(task, AssembleTask)]


@asynccontextmanager
async def running_fleet(
    settings: Settings, folder: Path, *, credits_: int = 64
) -> AsyncIterator[Fleet]:
    """A started Fleet; its controllers are killed at the end."""
    fleet = Fleet(settings, folder, credits_=credits_)
    try:
        await fleet.start()
        yield fleet
    finally:
        await fleet.stop()
