"""Output and error files of batches that still run, merged from their segments as they are read.

What is certain of a batch is kept for its next reader: a follower's request costs the lines that
are new. The indexes are bounded by their lines; who asks for one that was dropped waits while it
is read again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator

import structlog

from schemas.records import BatchSnapshot, BatchStatus
from streams.domain import keys
from streams.domain.assembly import is_whole
from streams.domain.partial import PartialFiles, Piece
from streams.domain.segment import SegmentError
from streams.ports.object_store import ObjectStore, ObjectStoreError
from streams.segments.reading import SegmentReader, Source

log = structlog.get_logger(__name__)

#: The states of a batch whose files are not there yet, though some of its lines may be.
UNFINISHED = (BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING, BatchStatus.CANCELLING)
#: Lines of all batches whose indexes are kept, at about 41 bytes each.
MAX_KEPT_LINES = 1_000_000
#: Indexes brought up to date at once.
_AT_ONCE = 4
#: Lines taken in between two turns of the event loop: a few milliseconds.
_LINES_AT_ONCE = 4096


class _Ranges:
    """Reads a range once: a client that gets an error asks again."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def read(self, key: str, offset: int, length: int) -> bytes:
        return await self._store.get_range(key, offset, length)

    def damaged(self, key: str, error: SegmentError) -> None:
        # A line's winner might be in it, so nothing can be said of the lines.
        log.error("A segment is damaged.", action="segment_damaged", key=key, error=str(error))
        raise ObjectStoreError("A segment is damaged.") from error


class PartialBatch:
    """One batch's files, as far as they are certain."""

    def __init__(self, store: ObjectStore, batch: BatchSnapshot) -> None:
        self.files = PartialFiles(batch.total)
        self._prefix = keys.segments_prefix(batch.batch_id)
        self._reader = SegmentReader(store, _Ranges(store))
        self._sources: list[Source] = []
        self._updating = asyncio.Lock()

    async def update(self, prefix: int, free: asyncio.Semaphore) -> None:
        """Takes in that so many lines are accepted. Raises ObjectStoreError."""
        async with self._updating:
            if prefix > self.files.lines:
                async with free:
                    await self._add_new_segments()
                await self._extend(prefix)

    async def read(self, start: int, end: int, *, output: bool) -> AsyncGenerator[bytes, None]:
        """The bytes [start, end), all of them certain. Raises ObjectStoreError."""
        for piece in self.files.pieces(start, end, output=output):
            yield await self._bytes_of(piece)

    async def _add_new_segments(self) -> None:
        known = {source.key for source in self._sources}
        new = [s for s in await self._reader.segments(self._prefix) if s.key not in known]
        async for number, entries in self._reader.indexes(new):
            # One whole segment at a time: if this is broken off, the others are still new.
            self.files.add(len(self._sources), entries)
            self._sources.append(new[number])
            await asyncio.sleep(0)

    async def _extend(self, prefix: int) -> None:
        before = -1
        while before < self.files.lines < prefix:
            before = self.files.lines
            self.files.extend(min(prefix, before + _LINES_AT_ONCE))
            await asyncio.sleep(0)

    async def _bytes_of(self, piece: Piece) -> bytes:
        texts = await self._reader.lines(self._sources, piece.spans)
        for span in piece.spans:
            if not is_whole(texts.get(span.line, b""), span):
                # Assembly will find it lost; the bytes before it stand.
                raise ObjectStoreError("A line can't be read back from its segment.")
        joined = b"".join([texts[span.line] for span in piece.spans])
        return joined[piece.start : piece.end]


class PartialOutputs:
    """The batches that were read last."""

    def __init__(self, store: ObjectStore, max_lines: int = MAX_KEPT_LINES) -> None:
        self._store = store
        self._max_lines = max_lines
        self._kept: OrderedDict[str, PartialBatch] = OrderedDict()
        self._free = asyncio.Semaphore(_AT_ONCE)

    async def of(self, batch: BatchSnapshot) -> PartialBatch:
        """The batch's files as this snapshot says. Raises ObjectStoreError."""
        found = self._kept.get(batch.batch_id)
        if found is None:
            found = self._kept[batch.batch_id] = PartialBatch(self._store, batch)
        self._kept.move_to_end(batch.batch_id)
        self._drop_oldest()
        await found.update(batch.accepted_prefix, self._free)
        return found

    def _drop_oldest(self) -> None:
        lines = sum(kept.files.total for kept in self._kept.values())
        while lines > self._max_lines and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            lines -= dropped.files.total
