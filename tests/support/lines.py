"""The lines' half of the pipeline for tests: slices in by hand, worker and collector as processes.

slices ──► batch-worker ──► an upstream in the test ──► collector ──► segments and events
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from schemas.records import (
    BatchSnapshot,
    BatchStatus,
    ClaimCheck,
    CollectedLine,
    DoneLines,
    Outcome,
    OutcomeKind,
    ReadyLine,
    ReadyLines,
    SegmentWritten,
    WorkerLoad,
)
from schemas.topics import (
    BATCH_COMMAND,
    BATCH_EVENT,
    BATCH_STATUS,
    CAPACITY,
    LINE_DONE,
    LINE_READY,
    Topic,
)
from streams.adapters.object_store import open_store
from streams.domain import segment
from streams.kafka.admin import apply_topics
from streams.kafka.errors import TopicMissing
from streams.kafka.groups import committed_offsets, group_name
from streams.kafka.producer import RecordProducer
from streams.kafka.reader import TopicReader
from streams.settings import Settings
from tests.support.waiting import eventually

CHAT = "/v1/chat/completions"
FAR_MS = 1 << 50
PARTITIONS = 2


@dataclass
class Upstream:
    """Answers by model: 'hang' never, 'slow' after delay_s, others at once; counts each line.

    bodies: the last request of each line. strangers: calls that its metrics show besides ours.
    """

    url: str = ""
    delay_s: float = 0.0
    served: Counter[tuple[str, int]] = field(default_factory=Counter)
    bodies: dict[tuple[str, int], Any] = field(default_factory=dict)
    running: int = 0
    cut: int = 0
    strangers: int = 0

    async def metrics(self, _request: web.Request) -> web.Response:
        running = self.running + self.strangers
        page = f"vllm:num_requests_running {running}\nvllm:num_requests_waiting 0\n"
        return web.Response(text=page)

    async def answer(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        self.running += 1
        try:
            await asyncio.sleep(3600 if body["model"] == "hang" else self.delay_s)
        except asyncio.CancelledError:
            self.cut += 1
            raise
        finally:
            self.running -= 1
        self.served[body["batch"], body["n"]] += 1
        self.bodies[body["batch"], body["n"]] = body
        usage = {"prompt_tokens": 1, "completion_tokens": body["n"]}
        return web.json_response({"id": "x", "echo": body["n"], "usage": usage})


@asynccontextmanager
async def running_upstream(delay_s: float = 0.0) -> AsyncIterator[Upstream]:
    """An Upstream on a free port."""
    upstream = Upstream(delay_s=delay_s)
    app = web.Application()
    app.router.add_post(CHAT, upstream.answer)
    app.router.add_get("/metrics", upstream.metrics)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    upstream.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield upstream
    finally:
        await runner.cleanup()


def raw_line(batch: str, number: int, model: str = "m", pad: int = 0) -> bytes:
    """A line of an input file."""
    body = {"model": model, "batch": batch, "n": number, "pad": "x" * pad}
    line = {"custom_id": f"c{number}", "method": "POST", "url": CHAT, "body": body}
    return json.dumps(line).encode()


class Lines:
    """Topics of one test, the processes on them, and everything that came out."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        upstreams: dict[str, str],
        yields: dict[str, Any] | None = None,
    ) -> None:
        """upstreams: name to base URL; each serves every model, eight calls at once."""
        self.settings = settings
        self.store = open_store(settings.resolved_store_url)
        self.producer = RecordProducer(settings)
        self._folder = folder
        self._reader = TopicReader(settings, [LINE_DONE, BATCH_EVENT, CAPACITY])
        self._processes: list[subprocess.Popen[bytes]] = []
        self.done: list[DoneLines] = []
        self.events: list[SegmentWritten] = []
        self.loads: list[WorkerLoad] = []
        table = {
            "upstreams": [
                {
                    "name": name,
                    "base_url": url,
                    "models": ["*"],
                    "max_in_flight": 8,
                    "yield": yields or {},
                }
                for name, url in upstreams.items()
            ]
        }
        (folder / "upstreams.yaml").write_text(json.dumps(table))

    async def start(self) -> None:
        keyed = {t.name: PARTITIONS for t in (LINE_DONE, BATCH_EVENT, BATCH_COMMAND)}
        await apply_topics(self.settings, {**keyed, LINE_READY.name: PARTITIONS})
        await self.producer.start()
        await eventually(self._reader_started, 10, "the broker knows the new topics")

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
        await self.producer.stop()
        await self._reader.stop()

    def run(self, role: str, failpoint: str = "", instance: str = "0") -> subprocess.Popen[bytes]:
        """Starts a role; a failpoint ends it there."""
        settings = self.settings
        env = {
            **os.environ,
            "BACKHAUL_KAFKA": settings.kafka,
            "BACKHAUL_KAFKA_REPLICAS": "1",
            "BACKHAUL_KAFKA_IDEMPOTENCE": str(settings.kafka_idempotence),
            "BACKHAUL_SESSION_TIMEOUT_S": str(settings.session_timeout_s),
            "BACKHAUL_TOPIC_PREFIX": settings.topic_prefix,
            "BACKHAUL_DATA_DIR": str(settings.data_dir),
            "BACKHAUL_UPSTREAMS_FILE": str(self._folder / "upstreams.yaml"),
            "BACKHAUL_INSTANCE": instance,
            "BACKHAUL_FAILPOINT": failpoint,
            "BACKHAUL_CLAIM_CHECK_BYTES": "4096",
        }
        log = (self._folder / f"{role}-{len(self._processes)}.log").open("wb")
        with log:
            process = subprocess.Popen([sys.executable, "-m", "streams", role], env=env, stderr=log)
        self._processes.append(process)
        return process

    async def release(
        self,
        batch: str,
        numbers: Iterable[int],
        *,
        pool: str = "a",
        model: str = "m",
        tail: bool = False,
        partition: int = 0,
        slice_lines: int = 4,
        lines: Sequence[ReadyLine] = (),
        pins: ClaimCheck | None = None,
    ) -> None:
        """Puts lines on line.ready, in slices."""
        ready = [*lines]
        ready += [ReadyLine(line=n, attempt=1, raw=raw_line(batch, n, model)) for n in numbers]
        slices = [ready[at : at + slice_lines] for at in range(0, len(ready), slice_lines)]
        await asyncio.gather(
            *(
                self.producer.send_to(
                    LINE_READY,
                    partition,
                    ReadyLines(
                        batch_id=batch,
                        tenant="t",
                        at_ms=0,
                        endpoint=CHAT,
                        pool=pool,
                        deadline_ms=FAR_MS,
                        created_at_ms=0,
                        tail=tail and part is slices[-1],
                        pins=pins,
                        lines=tuple(part),
                    ),
                    key=batch,
                )
                for part in slices
            )
        )

    async def set_status(self, batch: str, status: BatchStatus) -> None:
        """Publishes a snapshot of the batch."""
        snapshot = BatchSnapshot(
            batch_id=batch,
            tenant="t",
            revision=1,
            status=status,
            created_at_ms=0,
            expires_at_ms=FAR_MS,
            endpoint=CHAT,
            input_file_id="file-1",
            completion_window="24h",
            metadata={},
            request_hash="",
            errors=(),
            total=0,
            completed=0,
            failed=0,
        )
        await self.producer.send(BATCH_STATUS, batch, snapshot)

    async def read(self) -> None:
        """Reads what came out since the last call."""
        for read in await self._reader.poll(0.1):
            match read.record:
                case DoneLines() as done:
                    self.done.append(done)
                case SegmentWritten() as event:
                    self.events.append(event)
                case WorkerLoad() as load:
                    self.loads.append(load)

    def outcomes(self, batch: str) -> list[Outcome]:
        """Every outcome of a batch that the worker sent."""
        return [o for done in self.done if done.batch_id == batch for o in done.outcomes]

    def counted(self, batch: str) -> dict[int, CollectedLine]:
        """Final outcomes as a ledger counts them: the first told of each line."""
        found: dict[int, CollectedLine] = {}
        for event in self.events:
            if event.batch_id == batch:
                for line in event.lines:
                    if line.kind is not OutcomeKind.RETRY:
                        found.setdefault(line.line, line)
        return found

    async def all_counted(self, batch: str, numbers: Iterable[int], within_s: float = 40) -> None:
        """Waits until the collector has told of exactly these lines."""
        wanted = set(numbers)

        async def counted() -> bool:
            await self.read()
            return set(self.counted(batch)) == wanted

        await eventually(counted, within_s, f"outcomes of {len(wanted)} lines")

    async def all_committed(self, role: str, topic: Topic, within_s: float = 15) -> None:
        """Waits until the role's group has committed all that its topic holds."""
        await all_committed(self.settings, role, topic, within_s)

    async def rendered(self, batch: str) -> dict[int, dict[str, object]]:
        """The lines of a batch's segments as assembly sees them: the lowest done_offset wins."""
        best: dict[int, tuple[int, bytes]] = {}
        for event in self.events:
            if event.batch_id != batch or event.segment is None:
                continue
            data = await self.store.get(event.segment.key)
            footer = data[-segment.FOOTER_BYTES :]
            start, length = segment.index_range(footer, len(data))
            for e in segment.read_index(data[start : start + length], footer):
                copy = (e.done_offset, data[e.offset : e.offset + e.length])
                best[e.line] = min(best.get(e.line, copy), copy)
        return {line: json.loads(copy) for line, (_, copy) in best.items()}


@asynccontextmanager
async def running_lines(
    settings: Settings,
    folder: Path,
    upstreams: dict[str, str],
    yields: dict[str, Any] | None = None,
) -> AsyncIterator[Lines]:
    """A started Lines; every process of it is killed at the end."""
    lines = Lines(settings, folder, upstreams, yields)
    try:
        await lines.start()
        yield lines
    finally:
        await lines.stop()


async def all_committed(settings: Settings, role: str, topic: Topic, within_s: float = 15) -> None:
    """Waits until a role's group has committed all that its topic holds now."""
    reader = TopicReader(settings, [topic])
    await reader.start("end")
    ends = {partition: end for (_, partition), end in (await reader.ends()).items()}
    await reader.stop()
    group = group_name(settings, role)

    async def committed() -> bool:
        found = await committed_offsets(settings, group, topic)
        return all(max(found.get(p, 0), 0) == end for p, end in ends.items())

    await eventually(committed, within_s, f"{role} commits {ends}")


async def exit_code(process: subprocess.Popen[bytes], within_s: float = 30) -> int:
    """Waits for the process to end by itself."""
    await eventually(lambda: process.poll() is not None, within_s, "the process ends")
    return process.returncode


def terminate(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
