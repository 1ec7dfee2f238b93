"""Members of two groups killed, stopped and started at random under load: nothing lost, all exact.

The Kafka base alone, without the pipeline on top: `pytest tests/integration/test_kafka_chaos.py -m
chaos`. BACKHAUL_CHAOS_SEED repeats a run.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator

import pytest

from schemas.records import BatchWindowEnded
from schemas.topics import BATCH_EVENT, FILE_TASK
from streams.kafka.admin import apply_topics
from streams.kafka.producer import RecordProducer
from streams.settings import Settings
from tests.integration.test_kafka_role import SESSION_S, Process, _all_committed, _done, _task
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kafka, pytest.mark.real_kafka, pytest.mark.chaos]

_MEMBERS = [("table", "a"), ("table", "b"), ("tasks", "a"), ("tasks", "b")]
_BATCHES = 40
_FOR_S = 90.0
_PAUSE_S = 0.004


class Chaos:
    """The members, and what is done to them."""

    def __init__(self, settings: Settings, rng: random.Random) -> None:
        self._settings = settings
        self._random = rng
        self.all: list[Process] = []
        self.members = {member: self._begin(*member) for member in _MEMBERS}
        self._stopped: set[tuple[str, str]] = set()

    def _begin(self, kind: str, instance: str) -> Process:
        self.all.append(Process(self._settings, (kind,), instance))
        return self.all[-1]

    def revive(self) -> bool:
        """Starts who has ended; true when nobody had."""
        ended = [m for m, p in self.members.items() if p.popen.poll() is not None]
        for member in ended:
            self.members[member] = self._begin(*member)
            self._stopped.discard(member)
        return not ended

    def strike(self) -> None:
        """One fault, or the end of one."""
        member = self._random.choice(_MEMBERS)
        popen = self.members[member].popen
        if popen.poll() is not None:
            self.members[member] = self._begin(*member)
        elif member in self._stopped:
            popen.send_signal(signal.SIGCONT)
            self._stopped.discard(member)
        else:
            fault = self._random.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
            popen.send_signal(fault)
            if fault is signal.SIGSTOP:
                self._stopped.add(member)

    def relent(self) -> None:
        """Wakes who is stopped."""
        for member in self._stopped:
            self.members[member].popen.send_signal(signal.SIGCONT)
        self._stopped.clear()

    def end(self) -> None:
        """Kills everybody."""
        for process in self.all:
            process.popen.kill()
            process.popen.wait()


@pytest.fixture
def rng() -> random.Random:
    """Seeded, and said so that a failure can be repeated."""
    seed = int(os.environ.get("BACKHAUL_CHAOS_SEED") or time.time())
    print(f"BACKHAUL_CHAOS_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
async def applied(kafka_settings: Settings) -> Settings:
    """Settings with the topics made."""
    await apply_topics(kafka_settings)
    return kafka_settings


@pytest.fixture
def chaos(applied: Settings, rng: random.Random) -> Iterator[Chaos]:
    """The members."""
    members = Chaos(applied, rng)
    yield members
    members.end()


async def _feed(settings: Settings, enough: asyncio.Event) -> int:
    producer = RecordProducer(settings)
    await producer.start()
    sent = 0
    while not enough.is_set():
        batch_id = f"batch_{sent % _BATCHES}"
        event = BatchWindowEnded(batch_id=batch_id, tenant="t", at_ms=sent)
        await asyncio.gather(
            producer.send(BATCH_EVENT, batch_id, event),
            producer.send(FILE_TASK, f"batch_{sent}", _task(sent)),
        )
        sent += 1
        await asyncio.sleep(_PAUSE_S)
    await producer.stop()
    return sent


@pytest.mark.timeout(400)
async def test_nothing_is_lost_and_the_table_is_exact(
    applied: Settings, chaos: Chaos, rng: random.Random
) -> None:
    enough = asyncio.Event()
    feeding = asyncio.create_task(_feed(applied, enough))
    deadline = time.monotonic() + _FOR_S
    while time.monotonic() < deadline:
        await asyncio.sleep(rng.uniform(0.5, 4))
        chaos.strike()
    chaos.relent()
    enough.set()
    sent = await feeding

    async def all_done() -> bool:
        return (
            chaos.revive()
            and await _all_committed(applied, BATCH_EVENT, "controller", sent)
            and await _all_committed(applied, FILE_TASK, "file-worker", sent)
        )

    await eventually(all_done, 90)
    assert set(_done(*chaos.all)) == {f"task_{n}" for n in range(sent)}
    chaos.end()
    check = Process(applied, ("table",), "z")
    chaos.all.append(check)
    await check.assigned(4, within_s=SESSION_S + 20)
    counts = {f"batch_{n}": len(range(n, sent, _BATCHES)) for n in range(_BATCHES)}
    await check.recovered(counts)
