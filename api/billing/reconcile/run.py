"""Reads everything that is to be compared, and compares it.

    meter.send ─► batch.status ─► output files ─► books ─► differences ─► their lines
                                                     └──► the sink's sums ─► their minutes

Sends are read before batches, so that a batch that has ended may lack sends that are on their way,
and never has one that its ledger doesn't know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from api.billing.reconcile.output import check_lines, sum_output
from api.billing.reconcile.scope import Scope
from api.billing.reconcile.sums import Checked, SinkCheck, Sleep
from api.billing.reconcile.topics import Key, read_batches, read_lines, read_sends
from api.log_port import LogReader
from api.read_model.schema import ended_at_ms
from schemas.records import BatchSnapshot, MeterSend, SendState
from schemas.topics import BATCH_STATUS, METER_SEND, USAGE_RECORDED, Topic
from streams.domain.billing.meter.tab import patience_ms
from streams.domain.billing.reconcile.lines import LineDifference
from streams.domain.billing.reconcile.sums import (
    Books,
    Cause,
    Difference,
    Entry,
    SinkBooks,
    Within,
    ranges,
)
from streams.ports.meter_sink import MeterSink
from streams.ports.object_store import ObjectStore

#: Batches whose lines are looked at, and lines told of each.
_DETAILED = 5
MAX_LINES = 1000


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where things are read. sink: None where nothing says where usage is billed."""

    reader: Callable[[Sequence[Topic]], LogReader]
    store: ObjectStore
    sink: MeterSink | None
    window_s: float
    sleep: Sleep = asyncio.sleep


@dataclass(slots=True)
class Report:
    """What was found.

    running: batches that have not ended and are not compared. without_output: ended ones whose
    output file is no longer there. lines: by batch, the lines of output files that differ.
    sums: None where there is no sink to ask.
    """

    entries: list[Entry]
    differences: list[Difference]
    batches: int = 0
    running: list[str] = field(default_factory=list)
    without_output: list[str] = field(default_factory=list)
    lines: dict[str, list[LineDifference]] = field(default_factory=dict)
    sums: list[Checked] | None = None
    sends: list[MeterSend] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens of the ledgers."""
        return sum(entry.ledger or 0 for entry in self.entries)

    @property
    def on_way(self) -> int:
        """Tokens that are not known to have arrived and may still."""
        return sum(entry.sent.on_way for entry in self.entries)

    @property
    def adjusted(self) -> list[MeterSend]:
        """What a person has taken back or written off."""
        gone = (SendState.CANCELLED, SendState.WRITTEN_OFF)
        return [send for send in self.sends if send.state in gone]

    @property
    def balanced(self) -> bool:
        """Whether nothing differs."""
        return not self.differences and all(checked.sum.agrees for checked in self.sums or ())


async def reconcile(places: Places, scope: Scope, now_ms: int) -> Report:
    """Compares what is in scope. Raises KafkaBaseError, ObjectStoreError, SinkUnavailable."""
    sends = await read_sends(places.reader([METER_SEND]), scope.has_send)
    batches = await read_batches(places.reader([BATCH_STATUS]), scope)
    ended = [batch for batch in batches if ended_at_ms(batch) is not None]
    running = [batch.batch_id for batch in batches if ended_at_ms(batch) is None]
    report = Report([], [], len(ended), running, sends=sends)
    books = await _books(places, ended, report, now_ms)
    alive = set(running)
    for send in sends:
        if send.batch_id not in alive:
            books.add_send(send)
    report.differences = books.close()
    report.entries = books.entries()
    await _look_at_lines(places, ended, report)
    if places.sink is not None:
        report.sums = await _ask_sink(places, places.sink, sends, now_ms)
    return report


async def _books(
    places: Places, ended: Iterable[BatchSnapshot], report: Report, now_ms: int
) -> Books:
    several = [batch for batch in ended if batch.model is None and batch.output is not None]
    recorded = await read_lines(places.reader([USAGE_RECORDED]), several, with_usage=False)
    books = Books()
    for batch in ended:
        output = await sum_output(places.store, batch, recorded.get(_key(batch)))
        if output is None:
            report.without_output.append(batch.batch_id)
        open_until_ms = (ended_at_ms(batch) or 0) + patience_ms(places.window_s)
        books.add_batch(batch, output, settled=now_ms > open_until_ms)
    return books


async def _look_at_lines(places: Places, ended: Iterable[BatchSnapshot], report: Report) -> None:
    wrong = {
        difference.account.batch_id
        for difference in report.differences
        if difference.cause is Cause.OUTPUT
    }
    if not wrong:
        return
    batches = [batch for batch in ended if batch.batch_id in wrong][:_DETAILED]
    recorded = await read_lines(places.reader([USAGE_RECORDED]), batches, with_usage=True)
    for batch in batches:
        found = await check_lines(places.store, batch, recorded[_key(batch)], MAX_LINES)
        report.lines[batch.batch_id] = found


async def _ask_sink(
    places: Places, sink: MeterSink, sends: Iterable[MeterSend], now_ms: int
) -> list[Checked]:
    wanted = ranges(sends)
    if not wanted:
        return []
    beside = await read_sends(places.reader([METER_SEND]), Within(wanted).has)
    books = SinkBooks(beside, now_ms, int(sink.sums_lag_s * 1000))
    check = SinkCheck(sink, books, places.sleep)
    return [await check.check(range_) for range_ in wanted]


def _key(batch: BatchSnapshot) -> Key:
    return batch.tenant, batch.batch_id
