"""A small role as a process of its own: `python -m tests.support.kafka_role KIND [BEHAVIOUR]`.

KIND `tasks` works on file.task without tables, four records at a time, out of order; `table` counts
batch.event per batch in a table. What it does is written to stdout, one JSON object per line.
Settings come from BACKHAUL_*.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from schemas.records import BatchWindowEnded, ChunkRow, IntakeTask
from schemas.topics import BATCH_EVENT, FILE_TASK
from streams import log
from streams.kafka.ack_window import AckWindow, Slot
from streams.kafka.consumer import GroupConsumer
from streams.kafka.role import Consumed, Role
from streams.settings import Settings

#: How many tasks run at once.
CONCURRENCY = 4


def say(event: str, **fields: Any) -> None:
    """Writes one line to stdout."""
    print(json.dumps({"event": event, **fields}), flush=True)


async def assigned(role: Role, partitions: dict[str, set[int]]) -> None:
    """Tells what was assigned."""
    (topic,) = role.topics.values()
    say(
        "assigned",
        partitions={name: sorted(found) for name, found in partitions.items()},
        committed=sum(max(0, at) for at in role.committed(topic).values()),
    )


class Tasks:
    """Finishes tasks in random order, a few at a time."""

    def __init__(self, role: Role, behaviour: str) -> None:
        self.slow_s = 0.3 if behaviour == "slow" else 0.002
        self.window = AckWindow[Consumed](CONCURRENCY)
        self.running: set[asyncio.Task[None]] = set()
        self.random = random.Random(0)
        role.consume(FILE_TASK, self.body, buffer=64)
        role.on_assigned(partial(assigned, role))
        role.on_revoked(self.revoked)
        role.on_stopping(self.stopping)

    async def body(self, records: AsyncIterator[Consumed]) -> None:
        """Admits, and lets each record take its time."""
        async for consumed in records:
            slot = await self.window.admit(consumed)
            if not consumed.live:
                self.window.finish(slot)
            else:
                task = asyncio.create_task(self.work(slot))
                self.running.add(task)
                task.add_done_callback(self.running.discard)

    async def work(self, slot: Slot[Consumed]) -> None:
        """One task."""
        record = slot.item.record
        assert isinstance(record, IntakeTask)
        await asyncio.sleep(self.random.random() * 2 * self.slow_s)
        say("done", task=record.task_id)
        self.window.finish(slot)

    async def revoked(self, partitions: dict[str, set[int]]) -> None:
        """Drops the window's slots."""
        self.window.drop(partitions)
        say("revoked")

    async def stopping(self) -> None:
        """Finishes what is in flight, and what was waiting for its slot."""
        while self.running:
            await asyncio.wait(self.running)
        say("finished")


class Counts:
    """Counts a batch's events in a table, as the controller folds them."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.table = role.table("chunks", BATCH_EVENT)
        role.consume(BATCH_EVENT, self.body)
        role.on_assigned(self.assigned)

    async def assigned(self, partitions: dict[str, set[int]]) -> None:
        """Tells what was recovered."""
        await assigned(self.role, partitions)
        say("recovered", counts={k: r.completed for k, r in self.rows()})

    def rows(self) -> list[tuple[str, ChunkRow]]:
        """The table."""
        return [(key, row) for key, row in self.table.items() if isinstance(row, ChunkRow)]

    async def body(self, records: AsyncIterator[Consumed]) -> None:
        """Folds each event once."""
        async for consumed in records:
            event = consumed.record
            assert isinstance(event, BatchWindowEnded)
            row = self.table.get(event.batch_id)
            assert row is None or isinstance(row, ChunkRow)
            if row is None or row.watermark < consumed.offset:
                await self.role.fence.wait()
                count = (0 if row is None else row.completed) + 1
                self.table.put(event.batch_id, _row(event.batch_id, consumed, count), consumed)
            consumed.ack()
            say("folded", batch=event.batch_id, at=event.at_ms)


def _row(batch_id: str, consumed: Consumed, count: int) -> ChunkRow:
    return ChunkRow(
        batch_id=batch_id,
        chunk=0,
        watermark=consumed.offset,
        accepted=b"",
        completed=count,
        failed=0,
        retries=(),
    )


def _break(role: Role, behaviour: str) -> None:
    """Breaks the role the way the test wants it."""

    async def broken(_: dict[str, set[int]]) -> None:
        consumer = role.app.consumer
        assert isinstance(consumer, GroupConsumer)
        if behaviour == "stuck":

            async def fetch_nothing(*_: Any, **__: Any) -> dict[Any, Any]:
                await asyncio.sleep(0.1)
                return {}

            consumer._thread._fetch_records = fetch_nothing  # type: ignore[method-assign]
        elif behaviour == "raise-in-thread":

            async def fail(*_: Any, **__: Any) -> dict[Any, Any]:
                raise RuntimeError("broken in the thread")

            consumer._thread._fetch_records = fail  # type: ignore[method-assign]
        elif behaviour == "raise-on-assigned":
            raise RuntimeError("broken in a callback")

    role.on_assigned(broken)


def main(arguments: list[str]) -> int:
    """Runs the role."""
    kind, behaviour = arguments[0], (arguments[1:] or [""])[0]
    settings = Settings()
    log.configure(settings, kind)
    role = Role("controller" if kind == "table" else "file-worker", settings, stall_s=4.0,
                tables=kind == "table", commit_interval_s=0.2)  # fmt: skip
    if kind == "table":
        Counts(role)
    else:
        Tasks(role, behaviour)
    _break(role, behaviour)
    return role.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
