"""Reading segments' indexes, and ranges of segments and of the input file, some at once.

How one range is read is the caller's: assembly waits for a store in trouble and in the end gives
an object up; a gateway, whose client can ask again, does neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from streams.domain.assembly import Read, Span, reads
from streams.domain.segment import (
    ENTRY_BYTES,
    FOOTER_BYTES,
    SegmentEntry,
    SegmentError,
    index_range,
    read_index,
)
from streams.ports.object_store import ObjectInfo, ObjectStore

T = TypeVar("T")

#: Ranged reads at once, for each reader.
READS_AT_ONCE = 16
#: Read from a segment's end at first: the footer and the index of 512 lines.
_TAIL_BYTES = FOOTER_BYTES + 512 * ENTRY_BYTES


@dataclass(frozen=True, slots=True)
class Source:
    """An object to read from, and its size in bytes."""

    key: str
    size_bytes: int


class Ranges(Protocol):
    """How ranges of objects are read, and what becomes of those that can't be."""

    async def read(self, key: str, offset: int, length: int) -> bytes | None:
        """The bytes, or None if the object was given up. Raises ObjectStoreError."""
        ...

    def damaged(self, key: str, error: SegmentError) -> None:
        """Hears of a segment that is none. What it raises ends the reading."""
        ...


class SegmentReader:
    """Reads one batch's objects."""

    def __init__(self, store: ObjectStore, ranges: Ranges) -> None:
        self._store = store
        self._ranges = ranges
        self._free = asyncio.Semaphore(READS_AT_ONCE)

    async def segments(self, prefix: str) -> list[Source]:
        """The segments there are, in a fixed order. Raises ObjectStoreError."""
        found: list[ObjectInfo] = [info async for info in self._store.list(prefix)]
        return [Source(i.key, i.size_bytes) for i in sorted(found, key=lambda i: i.key)]

    async def indexes(
        self, segments: Sequence[Source]
    ) -> AsyncIterator[tuple[int, list[SegmentEntry]]]:
        """Each readable segment's number and index. Raises ObjectStoreError as `Ranges` does."""
        for first in range(0, len(segments), READS_AT_ONCE):
            part = segments[first : first + READS_AT_ONCE]
            found = await _gather([self._index(source) for source in part])
            for number, entries in enumerate(found, first):
                if entries is not None:
                    yield number, entries

    async def whole(self, source: Source) -> bytes | None:
        """A small object, or None if it was given up."""
        return await self._range(source.key, 0, source.size_bytes)

    async def lines(self, sources: Sequence[Source], spans: Iterable[Span]) -> dict[int, bytes]:
        """Line numbers and bytes of the spans that could be read; `source` indexes `sources`."""
        wanted = reads(spans)
        found = await _gather([self._read(sources[read.source].key, read) for read in wanted])
        return {line: text for texts in found for line, text in texts.items()}

    async def _read(self, key: str, read: Read) -> dict[int, bytes]:
        data = await self._range(key, read.offset, read.length)
        return dict(read.cut(data)) if data is not None else {}

    async def _index(self, source: Source) -> list[SegmentEntry] | None:
        tail_bytes = min(source.size_bytes, _TAIL_BYTES)
        tail = await self._range(source.key, source.size_bytes - tail_bytes, tail_bytes)
        if tail is None:
            return None
        try:
            footer = tail[-FOOTER_BYTES:]
            start, length = index_range(footer, source.size_bytes)
            at = start - (source.size_bytes - tail_bytes)
            if at >= 0:
                index: bytes | None = tail[at : at + length]
            else:
                index = await self._range(source.key, start, length)
            return None if index is None else read_index(index, footer)
        except SegmentError as error:
            self._ranges.damaged(source.key, error)
            return None

    async def _range(self, key: str, offset: int, length: int) -> bytes | None:
        async with self._free:
            return await self._ranges.read(key, offset, length)


async def _gather(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results. If one fails the others are ended before its error is raised."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
