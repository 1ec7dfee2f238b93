"""What the topics say: amounts, batches, and the usage of single lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from api.billing.customers import all_records
from api.billing.reconcile.scope import Scope
from api.log_port import LogReader
from schemas.records import BatchSnapshot, MeterSend, UsageRecorded
from streams.domain.billing.reconcile.lines import RecordedLines

#: The clocks of whoever creates a batch and of whoever writes its usage differ by less.
_SLACK_MS = 3_600_000

Key = tuple[str, str]


async def read_sends(reader: LogReader, wanted: Callable[[MeterSend], bool]) -> list[MeterSend]:
    """The latest state of amounts that are wanted, in order; `reader`: a fresh one of METER_SEND.

    Memory holds these, not all that ever were.
    """
    latest: dict[str, MeterSend] = {}
    async for read in all_records(reader):
        send = read.record
        # One that no longer is what is wanted must still replace what it was.
        if isinstance(send, MeterSend) and (send.identifier in latest or wanted(send)):
            known = latest.get(send.identifier)
            if known is None or known.watermark < send.watermark:
                latest[send.identifier] = send
    return sorted(filter(wanted, latest.values()), key=lambda send: (send.at_ms, send.identifier))


async def read_batches(reader: LogReader, scope: Scope) -> list[BatchSnapshot]:
    """The latest snapshots of batches that are meant, oldest first; `reader`: BATCH_STATUS."""
    latest: dict[str, BatchSnapshot] = {}
    async for read in all_records(reader):
        batch = read.record
        if isinstance(batch, BatchSnapshot) and scope.has_batch(batch):
            known = latest.get(batch.batch_id)
            if known is None or known.revision <= batch.revision:
                latest[batch.batch_id] = batch
        elif batch is None:
            latest.pop(read.key, None)
    return sorted(latest.values(), key=lambda batch: (batch.created_at_ms, batch.batch_id))


async def read_lines(
    reader: LogReader, batches: Sequence[BatchSnapshot], *, with_usage: bool
) -> dict[Key, RecordedLines]:
    """What was recorded of these batches' lines; `reader` is a fresh one of USAGE_RECORDED."""
    found = {
        (batch.tenant, batch.batch_id): RecordedLines(batch.total, with_usage=with_usage)
        for batch in batches
    }
    if found:
        since_ms = min(batch.created_at_ms for batch in batches) - _SLACK_MS
        async for read in all_records(reader, since_ms):
            record = read.record
            if isinstance(record, UsageRecorded):
                lines = found.get((record.tenant, record.batch_id))
                if lines is not None:
                    lines.fold(record)
    return found
