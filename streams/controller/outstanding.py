"""Finds out what is out after an assignment: lines released before and not folded yet.

Read in this order, so that a line that moves on meanwhile is met later at the latest:

    1. line.ready from the batch-workers' commits on: released, perhaps running
    2. line.done from the collectors' commits on: answered, not told yet
    3. batch.event: what was told by now is folded up to the end seen here
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from schemas.metrics import Metrics
from schemas.records import DoneLines, ReadyLines
from schemas.topics import BATCH_EVENT, LINE_DONE, LINE_READY, Topic
from streams.kafka.groups import committed_offsets, group_name
from streams.kafka.reader import ReadRecord, TopicReader
from streams.settings import Settings

Attempts = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class FoundSlice:
    """Lines that are out. place: (partition, offset) in line.ready; None if already answered."""

    batch_id: str
    pool: str
    place: tuple[int, int] | None
    attempts: Attempts


@dataclass(slots=True)
class Outstanding:
    """What was found. event_ends: fold up to these offsets before releasing anything."""

    slices: list[FoundSlice] = field(default_factory=list)
    event_ends: dict[int, int] = field(default_factory=dict)


async def find_outstanding(
    settings: Settings, mine: Callable[[str], bool], metrics: Metrics
) -> Outstanding:
    """Reads the topics. mine: whether a batch is this process's. Raises KafkaBaseError."""
    found = Outstanding()

    def take(read: ReadRecord) -> None:
        record = read.record
        if isinstance(record, ReadyLines) and mine(record.batch_id):
            place = (read.partition, read.offset)
            attempts = tuple([(line.line, line.attempt) for line in record.lines])
            found.slices.append(FoundSlice(record.batch_id, record.pool, place, attempts))
        elif isinstance(record, DoneLines) and mine(record.batch_id):
            attempts = tuple([(outcome.line, outcome.attempt) for outcome in record.outcomes])
            found.slices.append(FoundSlice(record.batch_id, "", None, attempts))

    await _scan(settings, "batch-worker", LINE_READY, take, metrics)
    await _scan(settings, "collector", LINE_DONE, take, metrics)
    found.event_ends = await _ends(settings, BATCH_EVENT, metrics)
    return found


async def _scan(
    settings: Settings,
    role: str,
    topic: Topic,
    take: Callable[[ReadRecord], None],
    metrics: Metrics,
) -> None:
    committed = await committed_offsets(settings, group_name(settings, role), topic)
    reader = TopicReader(settings, [topic], metrics=metrics)
    try:
        await reader.start({(topic.name, p): max(0, offset) for p, offset in committed.items()})
        ends = await reader.ends()
        while any(reader.positions().get(at, 0) < end for at, end in ends.items()):
            for read in await reader.poll():
                take(read)
    finally:
        await reader.stop()


async def _ends(settings: Settings, topic: Topic, metrics: Metrics) -> dict[int, int]:
    reader = TopicReader(settings, [topic], metrics=metrics)
    try:
        await reader.start("end")
        return {partition: offset for (_, partition), offset in reader.positions().items()}
    finally:
        await reader.stop()
