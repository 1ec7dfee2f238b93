"""The file-worker as a process on a real broker: tasks in, events out, killed between any steps."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import zlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

from schemas.records import (
    AssembleReason,
    AssembleTask,
    BatchAssembled,
    BatchRejected,
    BatchValidated,
    IntakeTask,
    ObjectRef,
    OutcomeKind,
    PinnedPrompt,
    PromptHead,
    PromptVersion,
    PromptVersionRef,
    Record,
)
from schemas.topics import BATCH_EVENT, FILE_TASK, PROMPT
from streams.adapters.object_store import open_store
from streams.domain import keys, segment
from streams.domain.plan import PlanBuilder, pins_range
from streams.domain.prompts.pins import decode_pins
from streams.domain.prompts.registry import head_key, version_key
from streams.kafka.admin import apply_topics
from streams.kafka.groups import committed_offsets, group_name
from streams.kafka.producer import RecordProducer
from streams.kafka.reader import TopicReader
from streams.settings import Settings
from tests.support.waiting import eventually

pytestmark = pytest.mark.kafka

E = TypeVar("E", bound=Record)
_WAIT_S = 40.0


def _line(n: int, size: int = 0) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * size}]}
    line = {"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line).encode() + b"\n"


def _prompt_line(n: int, **body: Any) -> bytes:
    fields = {"model": "m", "prompt_slug": "greet", "variables": {"name": "A"}} | body
    line = {"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": fields}
    return json.dumps(line).encode() + b"\n"


class _World:
    """Topics, a store, and file-worker processes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = open_store(settings.resolved_store_url)
        self.root = Path(settings.resolved_store_url)
        self.producer = RecordProducer(settings)
        self.reader = TopicReader(settings, [BATCH_EVENT])
        self.events: list[Record] = []
        self.processes: list[asyncio.subprocess.Process] = []
        self._upstreams = settings.data_dir / "upstreams.yaml"
        self._upstreams.write_text(
            "upstreams: [{name: u, base_url: 'http://127.0.0.1:9/v1', models: [m]}]"
        )

    async def start(self, failpoint: str = "") -> asyncio.subprocess.Process:
        """A file-worker process."""
        settings = self.settings
        env = os.environ | {
            "BACKHAUL_KAFKA": settings.kafka,
            "BACKHAUL_KAFKA_IDEMPOTENCE": str(settings.kafka_idempotence),
            "BACKHAUL_SESSION_TIMEOUT_S": str(settings.session_timeout_s),
            "BACKHAUL_TOPIC_PREFIX": settings.topic_prefix,
            "BACKHAUL_DATA_DIR": str(settings.data_dir),
            "BACKHAUL_UPSTREAMS_FILE": str(self._upstreams),
            "BACKHAUL_FAILPOINT": failpoint,
        }
        command = [sys.executable, "-m", "streams", "file-worker"]
        with (settings.data_dir / "log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(*command, env=env, stderr=log)
        self.processes.append(process)
        return process

    async def send(self, task: IntakeTask | AssembleTask) -> None:
        await self.producer.send(FILE_TASK, task.batch_id, task)

    async def answers(self, kind: type[E], count: int = 1) -> list[E]:
        """The events of this type, as soon as there are that many."""

        async def enough() -> list[E]:
            self.events += [r.record for r in await self.reader.poll() if r.record is not None]
            found = [cast("E", event) for event in self.events if isinstance(event, kind)]
            return found if len(found) >= count else []

        log = self.settings.data_dir / "log"
        what = f"{count} {kind.__name__}; log: {log.read_text()[-3000:] if log.exists() else ''}"
        return await eventually(enough, _WAIT_S, what)

    async def upload(self, name: str, data: Sequence[bytes]) -> ObjectRef:
        key = keys.uploaded_file("t", f"file-{name}")
        async with self.store.writer(key) as writer:
            for piece in data:
                await writer.write(piece)
        return ObjectRef(key=key, size_bytes=sum(map(len, data)))

    async def prompt(self, revision: int, text: str) -> int:
        """Publishes the next version of prompt `greet`; the topic's end after that."""
        messages = json.dumps([{"role": "user", "content": text}]).encode()
        version = PromptVersion(
            tenant="t",
            slug="greet",
            version_id=f"v{revision}",
            messages=messages,
            model_config=b"{}",
        )
        key = version_key("t", "greet", version.version_id)
        await self.producer.send(PROMPT, key, version)
        listed = [
            PromptVersionRef(
                number=n, version_id=f"v{n}", created_at_ms=0, size_bytes=0, request_hash="h"
            )
            for n in range(1, revision + 1)
        ]
        head = PromptHead(
            tenant="t",
            slug="greet",
            revision=revision,
            write_id="w",
            prompt_id="prompt_1",
            request_hash="h",
            created_at_ms=0,
            updated_at_ms=0,
            published=revision,
            latest=revision,
            versions=tuple(listed),
        )
        await self.producer.send(PROMPT, head_key("t", "greet", revision, "w"), head)
        return 2 * revision

    async def intake(self, name: str, data: Sequence[bytes]) -> IntakeTask:
        """Uploads a file and asks for its intake."""
        task = IntakeTask(
            task_id=f"{name}:intake",
            batch_id=name,
            tenant="t",
            at_ms=0,
            endpoint="/v1/chat/completions",
            input=await self.upload(name, data),
            deadline_ms=10**15,
        )
        await self.send(task)
        return task

    async def assembly(self, name: str, total: int, size: int, per_segment: int) -> None:
        """Writes input, plan and shuffled segments of a batch and asks for its assembly."""
        plan, offset, lines = PlanBuilder(), 0, []
        for n in range(total):
            lines.append(_line(n))
            plan.add(offset, len(lines[-1]) - 1, 0)
            offset += len(lines[-1])
        stored = keys.plan(name, "1")
        await self.store.put(stored, plan.build())
        segments = -(-total // per_segment)
        for number in range(segments):
            made = [_outcome(n, size) for n in range(number, total, segments)]
            await self.store.put(keys.segment(name, f"{number}"), segment.build(made))
        failed = len([n for n in range(total) if _kind(n) is OutcomeKind.FAILED])
        task = AssembleTask(
            task_id=f"{name}:assemble",
            batch_id=name,
            tenant="t",
            at_ms=0,
            reason=AssembleReason.COMPLETED,
            input=await self.upload(name, lines),
            plan=ObjectRef(key=stored, size_bytes=len(plan.build())),
            total=total,
            accepted=zlib.compress(((1 << total) - 1).to_bytes((total + 7) // 8, "little")),
            completed=total - failed,
            failed=failed,
        )
        await self.send(task)

    def staged(self) -> list[Path]:
        return list((self.root / ".staging").iterdir())


def _kind(n: int) -> OutcomeKind:
    return OutcomeKind.FAILED if n % 10 == 3 else OutcomeKind.COMPLETED


def _outcome(n: int, size: int) -> segment.RenderedLine:
    rendered = json.dumps({"custom_id": f"r{n}", "pad": "x" * size}).encode()
    return segment.RenderedLine(n, n, _kind(n), rendered)


@pytest.fixture
async def world(kafka_settings: Settings) -> AsyncIterator[_World]:
    await apply_topics(kafka_settings)
    made = _World(kafka_settings)
    await made.producer.start()
    await made.reader.start()
    yield made
    for process in made.processes:
        if process.returncode is None:
            process.kill()
            await process.wait()
    await made.reader.stop()
    await made.producer.stop()


async def test_tasks_are_answered_with_events_and_acked(world: _World) -> None:
    await world.start()
    await world.intake("good", [_line(n) for n in range(1000)])
    await world.intake("bad", [_line(1), b"not json\n"])
    await world.assembly("done", total=100, size=100, per_segment=7)
    (validated,) = await world.answers(BatchValidated)
    (rejected,) = await world.answers(BatchRejected)
    (assembled,) = await world.answers(BatchAssembled)
    assert (validated.batch_id, validated.total, validated.models) == ("good", 1000, ("m",))
    assert await world.store.size(validated.plan.key) == validated.plan.size_bytes
    assert [(e.code, e.line) for e in rejected.errors] == [("invalid_json_line", 2)]
    assert assembled.output is not None
    assert assembled.error is not None
    assert (assembled.output.lines, assembled.error.lines, assembled.lost) == (90, 10, 0)
    group = group_name(world.settings, "file-worker")

    async def all_acked() -> bool:
        committed = await committed_offsets(world.settings, group, FILE_TASK)
        return sum(max(0, offset) for offset in committed.values()) == 3

    await eventually(all_acked, _WAIT_S)


async def test_a_file_is_checked_with_all_prompts_acknowledged_before(world: _World) -> None:
    await world.prompt(1, "Hi {{name}}")
    await world.start()
    await world.intake("direct", [_line(1), _prompt_line(2)])
    (first,) = await world.answers(BatchValidated)
    assert first.prompts == (PinnedPrompt(slug="greet", version=1, lines=1),)
    # The worker has read the topic by now; what is published next it has to wait for.
    for revision in range(2, 30):
        await world.prompt(revision, f"Hi {{{{name}}}} {revision}")
        lines = [_prompt_line(1), _prompt_line(2, prompt_version=1), _line(3)]
        await world.intake(f"batch-{revision}", lines)
    later = (await world.answers(BatchValidated, 29))[1:]
    for event in later:
        # Not older than what was acknowledged before the task; newer it may be.
        assert event.prompts[0].version >= int(event.batch_id.removeprefix("batch-"))
        offset, length = pins_range(event.total, event.plan.size_bytes)
        pins = decode_pins(await world.store.get_range(event.plan.key, offset, length))
        assert [pin.version for pin in pins] == [event.prompts[0].version, 1]
        assert f'name}}}} {pins[0].version}"'.encode() in pins[0].messages


async def test_a_version_that_is_not_there_is_an_error_at_once(world: _World) -> None:
    await world.prompt(1, "Hi {{name}}")
    await world.start()
    await world.intake("first", [_prompt_line(1)])
    await world.answers(BatchValidated)
    await world.intake("unknown", [_prompt_line(1, prompt_version=2)])
    rejected = await world.answers(BatchRejected, 1)
    assert {(e.code, e.param) for event in rejected for e in event.errors} == {
        ("invalid_request", "body.prompt_version")
    }


@pytest.mark.parametrize(
    "failpoint",
    ["file_worker.plan_stored", "file_worker.event_sent", "file_worker.files_stored"],
)
async def test_a_worker_killed_between_two_steps_does_its_tasks_again(
    world: _World, failpoint: str
) -> None:
    killed = await world.start(failpoint)
    await world.intake("good", [_line(n) for n in range(100)])
    await world.assembly("done", total=50, size=10, per_segment=10)
    assert await asyncio.wait_for(killed.wait(), _WAIT_S) == 137
    await world.start()
    for validated in await world.answers(BatchValidated):
        assert await world.store.size(validated.plan.key) == validated.plan.size_bytes
    for assembled in await world.answers(BatchAssembled):
        assert assembled.output is not None
        data = await world.store.get(assembled.output.object.key)
        assert data.count(b"\n") == assembled.output.lines == 45


async def test_a_worker_that_is_told_to_stop_leaves_its_task_to_the_next(world: _World) -> None:
    stopped = await world.start()
    await world.intake("good", [_line(0)])
    await world.answers(BatchValidated)
    await world.intake("large", [_line(n, size=100_000) for n in range(1500)])
    await asyncio.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(stopped.wait(), _WAIT_S) == 0
    assert world.staged() == []
    await world.start()
    validated = await world.answers(BatchValidated, 2)
    assert validated[1].total == 1500


async def test_a_large_file_does_not_block_a_small_one(world: _World) -> None:
    await world.start()
    await world.intake("first", [_line(0)])
    await world.answers(BatchValidated)
    await world.intake("large", [_line(n, size=4000) for n in range(45_000)])
    await world.intake("small", [_line(n) for n in range(10)])
    names = [event.batch_id for event in await world.answers(BatchValidated, 3)]
    assert names == ["first", "small", "large"]


async def test_fifty_thousand_lines_are_assembled_in_order_with_flat_memory(
    world: _World,
) -> None:
    process = await world.start()
    await world.assembly("warm", total=100, size=100, per_segment=100)
    await world.answers(BatchAssembled)
    before = _peak_mib(process.pid)
    await world.assembly("huge", total=50_000, size=3000, per_segment=40)
    assembled = (await world.answers(BatchAssembled, 2))[1]
    grown = _peak_mib(process.pid) - before
    assert assembled.output is not None
    assert assembled.error is not None
    assert (assembled.output.lines, assembled.error.lines) == (45_000, 5_000)
    assert assembled.output.object.size_bytes > 130_000_000
    expected = 0
    tail = b""
    async for chunk in world.store.stream(assembled.output.object.key):
        whole, _, tail = (tail + chunk).rpartition(b"\n")
        for line in whole.splitlines():
            while _kind(expected) is OutcomeKind.FAILED:
                expected += 1
            assert line.startswith(b'{"custom_id": "r%d"' % expected)
            expected += 1
    assert (expected, tail) == (50_000, b"")
    assert grown < 80, f"{grown} MiB for 150 MB of output"


async def test_a_two_hundred_megabyte_file_is_checked_with_flat_memory(world: _World) -> None:
    process = await world.start()
    await world.intake("warm", [_line(0)])
    await world.answers(BatchValidated)
    before = _peak_mib(process.pid)
    await world.intake("huge", [_line(n, size=4000) for n in range(49_000)])
    validated = (await world.answers(BatchValidated, 2))[1]
    assert validated.total == 49_000
    grown = _peak_mib(process.pid) - before
    assert grown < 50, f"{grown} MiB for 200 MB of input"


def _peak_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmHWM")
