"""Roles as processes on a real broker: takeover, rebalance, recovery, zombies, stops, hangs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from schemas.codec import decode, encode
from schemas.headers import DLQ_OFFSET, DLQ_REASON, DLQ_TOPIC, ROW_WATERMARK
from schemas.records import BatchCancel, BatchWindowEnded, ChunkRow, IntakeTask, ObjectRef
from schemas.topics import BATCH_EVENT, FILE_TASK
from streams.kafka.admin import apply_topics, dead_letter_topic
from streams.kafka.dead_letters import RUN_LIMIT
from streams.kafka.groups import committed_offsets, group_name
from streams.kafka.producer import RecordProducer
from streams.kafka.reader import TopicReader
from streams.settings import Settings
from tests.support.kafka_role import CONCURRENCY
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kafka, pytest.mark.real_kafka]

#: Short, so that a takeover is soon; Kafka refuses less than six seconds.
SESSION_S = 6.0
_REPOSITORY = Path(__file__).parents[2]


class Process:
    """One role process and what it has said."""

    def __init__(
        self,
        settings: Settings,
        arguments: tuple[str, ...],
        instance: str,
        session_s: float = SESSION_S,
    ) -> None:
        self.folder = settings.data_dir
        count = len(list(self.folder.glob("*.out")))
        self.out = self.folder / f"{count}-{instance}.out"
        self.err = self.folder / f"{count}-{instance}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "tests.support.kafka_role", *arguments],
                stdout=out,
                stderr=err,
                cwd=_REPOSITORY,
                env=os.environ
                | {
                    "BACKHAUL_KAFKA": settings.kafka,
                    "BACKHAUL_KAFKA_REPLICAS": "1",
                    "BACKHAUL_TOPIC_PREFIX": settings.topic_prefix,
                    "BACKHAUL_SESSION_TIMEOUT_S": str(session_s),
                    "BACKHAUL_INSTANCE": instance,
                },
            )

    def said(self, event: str) -> list[dict[str, Any]]:
        """The events of one kind, in order."""
        text = self.out.read_text("utf-8")
        lines = text[: text.rfind("\n") + 1].splitlines()
        return [e for line in lines if (e := json.loads(line))["event"] == event]

    def logged(self) -> list[dict[str, Any]]:
        """The log."""
        return [json.loads(line) for line in self.err.read_text("utf-8").splitlines()]

    async def assigned(self, count: int, within_s: float = 20.0) -> None:
        """Waits until it holds so many partitions."""

        def holds() -> bool:
            found = self.said("assigned")
            return bool(found) and sum(map(len, found[-1]["partitions"].values())) == count

        await eventually(holds, within_s, f"{count} partitions; {self.err.read_text()[-2000:]}")

    async def recovered(self, counts: dict[str, int]) -> None:
        """Waits until its table's last recovery gave these counts."""

        def gave() -> bool:
            found = self.said("recovered")
            return bool(found) and found[-1]["counts"] == counts

        await eventually(gave, 20, f"{counts}, not {self.said('recovered')[-1:]}")

    async def ended(self, within_s: float = 20.0) -> int:
        """Waits for its end and returns the exit code."""
        await eventually(lambda: self.popen.poll() is not None, within_s, "the process ends")
        return int(self.popen.returncode)


Start = Callable[..., Process]


@pytest.fixture
async def settings(kafka_settings: Settings) -> Settings:
    """Settings with the topics made."""
    await apply_topics(kafka_settings)
    return kafka_settings


@pytest.fixture
def start(settings: Settings) -> Iterator[Start]:
    """Starts role processes; the test's end kills them."""
    processes: list[Process] = []

    def begin(*arguments: str, instance: str = "0", session_s: float = SESSION_S) -> Process:
        processes.append(Process(settings, arguments, instance, session_s))
        return processes[-1]

    yield begin
    for process in processes:
        process.popen.kill()
        process.popen.wait()


def _task(number: int) -> IntakeTask:
    return IntakeTask(
        task_id=f"task_{number}",
        batch_id=f"batch_{number}",
        tenant="t",
        at_ms=number,
        endpoint="/v1/chat/completions",
        input=ObjectRef(key="k", size_bytes=1),
        deadline_ms=0,
    )


async def _send_tasks(settings: Settings, numbers: range) -> set[str]:
    producer = RecordProducer(settings)
    await producer.start()
    await asyncio.gather(*(producer.send(FILE_TASK, f"batch_{n}", _task(n)) for n in numbers))
    await producer.stop()
    return {f"task_{n}" for n in numbers}


async def _send_events(settings: Settings, count: int, batches: int, start: int = 0) -> None:
    producer = RecordProducer(settings)
    await producer.start()
    await asyncio.gather(
        *(
            producer.send(
                BATCH_EVENT,
                f"batch_{n % batches}",
                BatchWindowEnded(batch_id=f"batch_{n % batches}", tenant="t", at_ms=n),
            )
            for n in range(start, start + count)
        )
    )
    await producer.stop()


def _done(*processes: Process) -> list[str]:
    return [str(e["task"]) for p in processes for e in p.said("done")]


async def _all_committed(settings: Settings, topic: Any, role: str, total: int) -> bool:
    found = await committed_offsets(settings, group_name(settings, role), topic)
    return sum(max(0, offset) for offset in found.values()) == total


async def _some_committed(settings: Settings, group: str) -> bool:
    return max((await committed_offsets(settings, group, FILE_TASK)).values()) > 0


async def test_another_member_takes_over_after_a_kill_and_nothing_is_lost(
    settings: Settings, start: Start
) -> None:
    first, second = start("tasks", instance="a"), start("tasks", instance="b")
    await first.assigned(2)
    await second.assigned(2)
    expected = await _send_tasks(settings, range(400))
    await eventually(lambda: len(_done(first)) > 20)
    first.popen.kill()
    await second.assigned(4, within_s=SESSION_S + 20)
    await eventually(lambda: set(_done(first, second)) == expected, 20)
    await eventually(lambda: _all_committed(settings, FILE_TASK, "file-worker", 400), 10)


async def test_a_killed_role_is_back_at_work_at_once_under_its_own_name(
    settings: Settings, start: Start
) -> None:
    # Long before the group would notice that it was gone.
    first = start("tasks", instance="a", session_s=120.0)
    await first.assigned(4)
    expected = await _send_tasks(settings, range(200))
    await eventually(lambda: len(_done(first)) > 20)
    group = group_name(settings, "file-worker")
    await eventually(lambda: _some_committed(settings, group))
    first.popen.kill()
    again = start("tasks", instance="a", session_s=120.0)
    await again.assigned(4)
    assert 0 < again.said("assigned")[-1]["committed"] <= len(_done(first))
    await eventually(lambda: set(_done(first, again)) == expected)


async def test_members_that_come_and_go_lose_nothing(settings: Settings, start: Start) -> None:
    # Who leaves says so; nobody waits for the end of a session.
    first = start("tasks", instance="a", session_s=120.0)
    await first.assigned(4)
    expected = await _send_tasks(settings, range(300))
    second = start("tasks", instance="b", session_s=120.0)
    await second.assigned(2)
    expected |= await _send_tasks(settings, range(300, 500))
    await eventually(lambda: len(_done(second)) > 10)
    second.popen.terminate()
    assert await second.ended() == 0
    await first.assigned(4)
    await eventually(lambda: set(_done(first, second)) == expected)
    await eventually(lambda: _all_committed(settings, FILE_TASK, "file-worker", 500), 10)
    repeated = len(_done(first, second)) - len(expected)
    assert repeated <= 3 * CONCURRENCY, "a rebalance repeats at most what was in flight"


async def test_a_graceful_stop_finishes_what_is_in_flight_and_repeats_nothing(
    settings: Settings, start: Start
) -> None:
    first = start("tasks", "slow")
    await first.assigned(4)
    expected = await _send_tasks(settings, range(30))
    await eventually(lambda: len(_done(first)) > 3)
    first.popen.send_signal(signal.SIGINT)
    assert await first.ended() == 0
    assert first.said("finished")
    second = start("tasks")
    await eventually(lambda: set(_done(first, second)) == expected)
    assert len(_done(first, second)) == len(expected)


async def test_records_that_cannot_be_read_go_to_the_dead_letters_verbatim(
    settings: Settings, start: Start
) -> None:
    producer = RecordProducer(settings)
    await producer.start()
    full_name = FILE_TASK.full_name(settings.topic_prefix)
    garbage = b"\xc3\x01not ours"
    wrong = encode(BatchCancel(command_id="c", batch_id="b", tenant="t", at_ms=1))
    place = await producer.send_raw(full_name, 0, b"key", garbage, [("theirs", b"kept")])
    await producer.send_raw(full_name, 0, None, wrong)
    await producer.send_to(FILE_TASK, 0, _task(7))
    start("tasks")
    await eventually(lambda: _all_committed(settings, FILE_TASK, "file-worker", 3), 20)
    raw = await _raw_records(
        settings, dead_letter_topic(FILE_TASK).full_name(settings.topic_prefix)
    )
    by_reason = {dict(r.headers)[DLQ_REASON]: r for r in raw}
    assert by_reason[b"undecodable"].value == garbage
    assert by_reason[b"undecodable"].key == b"key"
    headers = dict(by_reason[b"undecodable"].headers)
    assert headers["theirs"] == b"kept"
    assert headers[DLQ_TOPIC] == full_name.encode()
    assert headers[DLQ_OFFSET] == str(place.offset).encode()
    assert by_reason[b"wrong_record"].value == wrong
    await producer.stop()


def _dead_letters(settings: Settings) -> str:
    return dead_letter_topic(FILE_TASK).full_name(settings.topic_prefix)


async def _raw_records(settings: Settings, full_name: str) -> list[Any]:
    from aiokafka import AIOKafkaConsumer

    consumer = AIOKafkaConsumer(
        full_name,
        bootstrap_servers=settings.kafka,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    await consumer.start()
    try:
        ends, found = await consumer.end_offsets(consumer.assignment()), []
        while any([await consumer.position(place) < end for place, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=500)).values():
                found += records
        return found
    finally:
        await consumer.stop()


async def test_a_topic_full_of_garbage_ends_the_process_instead_of_draining(
    settings: Settings, start: Start
) -> None:
    producer = RecordProducer(settings)
    await producer.start()
    full_name = FILE_TASK.full_name(settings.topic_prefix)
    count = 4 * RUN_LIMIT
    await asyncio.gather(*(producer.send_raw(full_name, 0, None, b"x") for _ in range(count)))
    await producer.stop()
    process = start("tasks")
    assert await process.ended() == 1
    assert process.logged()[-2]["error"] == "TooManyDeadLetters"
    dead = await _raw_records(settings, _dead_letters(settings))
    assert len(dead) <= RUN_LIMIT + 1


async def test_nothing_listens_but_the_health_endpoint(settings: Settings, start: Start) -> None:
    for kind in ("tasks", "table"):
        process = start(kind)
        await process.assigned(4)
        (health,) = [e for e in process.logged() if e.get("action") == "health_listening"]
        connections = psutil.Process(process.popen.pid).net_connections()
        listening = {(c.laddr.ip, c.laddr.port) for c in connections if c.status == "LISTEN"}
        assert listening == {("127.0.0.1", health["port"])}
        base = f"http://127.0.0.1:{health['port']}"
        async with aiohttp.ClientSession(base) as session:
            assert await _get(session, "/health") == (200, b'{"status": "alive"}')
            await eventually(partial(_is_ready, session))
            assert b"backhaul_ready 1.0" in (await _get(session, "/metrics"))[1]
            assert (await _get(session, "/table"))[0] == 404


async def _is_ready(session: aiohttp.ClientSession) -> bool:
    return (await _get(session, "/ready"))[0] == 200


async def _get(session: aiohttp.ClientSession, path: str) -> tuple[int, bytes]:
    async with session.get(path) as response:
        return response.status, await response.read()


def _last_fold(process: Process) -> int:
    return len(process.said("folded"))


async def test_a_table_is_exact_after_kills(settings: Settings, start: Start) -> None:
    total, batches = 3000, 50
    await _send_events(settings, total, batches)
    for kill_after in (100, 900, 500):
        process = start("table")
        await eventually(lambda p=process, n=kill_after: _last_fold(p) > n, 20)  # type: ignore[misc]
        process.popen.kill()
        process.popen.wait()
    last = start("table")
    await eventually(lambda: _all_committed(settings, BATCH_EVENT, "controller", total), 20)
    last.popen.kill()
    last.popen.wait()
    check = start("table")
    await check.recovered({f"batch_{n}": total // batches for n in range(batches)})


async def test_two_members_share_a_table_through_a_kill(settings: Settings, start: Start) -> None:
    first, second = start("table", instance="a"), start("table", instance="b")
    await first.assigned(2)
    await second.assigned(2)
    await _send_events(settings, 2000, 50)
    await eventually(lambda: _last_fold(first) > 100)
    first.popen.kill()
    await second.assigned(4, within_s=SESSION_S + 10)
    await eventually(lambda: _all_committed(settings, BATCH_EVENT, "controller", 2000), 20)
    second.popen.kill()
    check = start("table", instance="b")
    await check.assigned(4, within_s=SESSION_S + 10)
    await check.recovered({f"batch_{n}": 40 for n in range(50)})


async def test_each_recovery_is_whole_however_soon_the_next_follows(
    settings: Settings, start: Start
) -> None:
    first = start("table", instance="a")
    await first.assigned(4)
    await _send_events(settings, 1000, 50)
    await eventually(lambda: _all_committed(settings, BATCH_EVENT, "controller", 1000), 20)
    others: list[Process] = []
    for instance in "bcd":
        others.append(start("table", instance=instance))
        await others[-1].assigned(2)
        others[-1].popen.terminate()
        assert await others[-1].ended() == 0
        await first.assigned(4)
    for process in (first, *others):
        for held, found in zip(process.said("assigned"), process.said("recovered"), strict=True):
            assert sum(found["counts"].values()) == held["committed"]


async def test_a_stopped_process_that_wakes_up_after_a_takeover_does_no_harm(
    settings: Settings, start: Start
) -> None:
    zombie, heir = start("table", instance="a"), start("table", instance="b")
    await zombie.assigned(2)
    await heir.assigned(2)
    await _send_events(settings, 1500, 50)
    await eventually(lambda: _last_fold(zombie) > 50)
    zombie.popen.send_signal(signal.SIGSTOP)
    await heir.assigned(4, within_s=SESSION_S + 10)
    await eventually(lambda: _all_committed(settings, BATCH_EVENT, "controller", 1500), 20)
    zombie.popen.send_signal(signal.SIGCONT)
    await _send_events(settings, 500, 50, start=1500)
    await eventually(lambda: _all_committed(settings, BATCH_EVENT, "controller", 2000), 30)
    for process in (zombie, heir):
        process.popen.kill()
        process.popen.wait()
    check = start("table", instance="b")
    await check.assigned(4, within_s=SESSION_S + 10)
    await check.recovered({f"batch_{n}": 40 for n in range(50)})


async def test_a_row_that_a_zombie_wrote_late_never_wins(settings: Settings, start: Start) -> None:
    await _send_events(settings, 40, 1)
    first = start("table")
    await eventually(lambda: _all_committed(settings, BATCH_EVENT, "controller", 40), 20)
    first.popen.terminate()
    assert await first.ended() == 0
    changelog = f"{group_name(settings, 'controller')}-chunks-changelog"
    stale = ChunkRow(
        batch_id="batch_0",
        chunk=0,
        watermark=3,
        accepted=b"",
        completed=4,
        failed=0,
        retries=(),
    )
    (newest,) = {(r.partition, r.value) for r in (await _raw_records(settings, changelog))[-1:]}
    producer = RecordProducer(settings)
    await producer.start()
    await producer.send_raw(
        changelog, newest[0], b"batch_0", encode(stale), [(ROW_WATERMARK, b"3")]
    )
    await producer.stop()
    second = start("table")
    await second.assigned(4)
    await second.recovered({"batch_0": 40})

    async def repaired() -> bool:
        last = (await _raw_records(settings, changelog))[-1]
        row = decode(last.value)
        return isinstance(row, ChunkRow) and row.completed == 40

    await eventually(repaired, 20, "the newest row is the changelog's last again")


async def test_a_member_that_gets_nothing_ends_so_that_it_is_started_again(
    settings: Settings, start: Start
) -> None:
    process = start("tasks", "stuck")
    await process.assigned(4)
    await _send_tasks(settings, range(10))
    assert await process.ended(30) == 1
    assert process.logged()[-2]["error"] == "Stalled"
    again = start("tasks")
    await eventually(lambda: len(set(_done(again))) == 10)


@pytest.mark.parametrize("behaviour", ["raise-in-thread", "raise-on-assigned"])
async def test_whatever_breaks_ends_the_process(start: Start, behaviour: str) -> None:
    assert await start("tasks", behaviour).ended() == 1


async def test_an_idle_member_is_not_taken_for_a_stalled_one(start: Start) -> None:
    process = start("tasks")
    await process.assigned(4)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(process.ended(), 9)


async def test_missing_topics_are_named_with_the_remedy(kafka_settings: Settings) -> None:
    process = Process(kafka_settings, ("tasks",), "0")
    assert await process.ended() == 1
    failed = [e for e in process.logged() if e.get("action") == "role_failed"]
    assert "backhaul topics apply" in failed[0]["event"]
    assert FILE_TASK.full_name(kafka_settings.topic_prefix) in failed[0]["event"]


async def test_without_a_broker_the_process_says_so_and_ends(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        process = Process(Settings(kafka=f"127.0.0.1:{port}", data_dir=tmp_path), ("tasks",), "0")
        assert await process.ended() == 1
    failed = [e for e in process.logged() if e.get("action") == "role_failed"]
    assert f"No Kafka broker answers at 127.0.0.1:{port}" in failed[0]["event"]


async def test_a_taken_health_port_is_not_taken_for_a_missing_broker(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("BACKHAUL_HEALTH_PORT", str(taken.getsockname()[1]))
        process = start("tasks")
        assert await process.ended() == 1
    failed = [e for e in process.logged() if e.get("action") == "role_failed"]
    assert failed[0]["event"].startswith("The health endpoint can't listen")


async def test_a_reader_sees_what_the_producer_sent(settings: Settings) -> None:
    reader = TopicReader(settings, [FILE_TASK])
    await reader.start("end")
    expected = await _send_tasks(settings, range(20))
    found: list[str] = []

    async def all_read() -> bool:
        found.extend(
            r.record.task_id for r in await reader.poll() if isinstance(r.record, IntakeTask)
        )
        return set(found) == expected

    await eventually(all_read)
    assert reader.positions() == await reader.ends()
    await reader.stop()
