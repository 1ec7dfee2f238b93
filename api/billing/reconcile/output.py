"""Sums up output files, read as streams: memory holds one line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from schemas.records import BatchSnapshot, Usage
from streams.domain.billing.reconcile.lines import LineCheck, LineDifference, RecordedLines
from streams.domain.billing.reconcile.output_file import (
    Cutter,
    UnreadableLine,
    numbers_of,
    usage_of_line,
)
from streams.domain.billing.reconcile.sums import UNKNOWN_MODEL
from streams.domain.billing.tokens import add
from streams.ports.object_store import ObjectNotFoundError, ObjectStore

_NONE = Usage()


async def sum_output(
    store: ObjectStore, batch: BatchSnapshot, recorded: RecordedLines | None
) -> Mapping[str, Usage] | None:
    """What the batch's output file says was used, by model; None if there is none to read.

    recorded: of a batch with several models, since an answer may name its model as the upstream
    does. Raises ObjectStoreError.
    """
    if batch.output is None:
        return {} if batch.completed == 0 else None
    numbers = {} if batch.model is not None else numbers_of(batch.batch_id, batch.total)
    found: dict[str, Usage] = {}
    try:
        async for text in _lines(store, batch.output.key):
            try:
                request_id, used = usage_of_line(text, batch.endpoint)
            except UnreadableLine:
                # It used nothing that anybody can see, which shows in the sum.
                continue
            model = batch.model or _model(numbers.get(request_id), recorded)
            found[model] = add(found.get(model, _NONE), used)
    except ObjectNotFoundError:
        return None
    return found


async def check_lines(
    store: ObjectStore, batch: BatchSnapshot, recorded: RecordedLines, most: int
) -> list[LineDifference]:
    """The first lines of the output file that are not as they were recorded.

    Raises ObjectStoreError.
    """
    found: list[LineDifference] = []
    check = LineCheck(batch.batch_id, batch.endpoint, batch.total, recorded)
    place = 0
    if batch.output is not None:
        async for text in _lines(store, batch.output.key):
            place += 1
            difference = check.feed(place, text)
            if difference is not None and len(found) < most:
                found.append(difference)
    for missing in check.missing():
        if len(found) >= most:
            break
        found.append(missing)
    return found


async def _lines(store: ObjectStore, key: str) -> AsyncIterator[bytes]:
    """The file's lines; a cut last one as it is. Raises ObjectStoreError."""
    cutter = Cutter()
    async for data in store.stream(key):
        for line in cutter.feed(data):
            yield line
    rest = cutter.rest()
    if rest:
        yield rest


def _model(number: int | None, recorded: RecordedLines | None) -> str:
    known = None if number is None or recorded is None else recorded.model(number)
    return UNKNOWN_MODEL if known is None else known
