"""Reading segments, and ranges of segments and of the input file, as far as they can be read.

What can't be read is told apart: an object that is gone, damaged or fails again and again while
others can be read is given up (its lines are lost, loudly); a store that answers nobody is
trouble that passes, and the whole assembly waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from streams.domain.assembly import Read, Span, reads
from streams.domain.segment import (
    ENTRY_BYTES,
    FOOTER_BYTES,
    SegmentEntry,
    SegmentError,
    index_range,
    read_index,
)
from streams.file_worker.patience import Patience
from streams.ports.object_store import (
    ObjectInfo,
    ObjectNotFoundError,
    ObjectStore,
    ObjectStoreError,
)

log = structlog.get_logger(__name__)
T = TypeVar("T")

#: One object may fail for this long while others can be read, before it is given up.
OBJECT_BUDGET_S = 120.0
#: Ranged reads at once, for each task.
READS_AT_ONCE = 16
#: Read from a segment's end at first: the footer and the index of 512 lines.
_TAIL_BYTES = FOOTER_BYTES + 512 * ENTRY_BYTES


@dataclass(frozen=True, slots=True)
class Source:
    """An object to read from, and its size in bytes."""

    key: str
    size_bytes: int


class Reader:
    """Reads for one assembly."""

    def __init__(
        self, store: ObjectStore, patience: Patience, batch_id: str, witnesses: Iterable[str]
    ) -> None:
        """`witnesses` are keys to try when it is not clear if an object is broken or the store."""
        self._store = store
        self._patience = patience
        self._batch_id = batch_id
        self._free = asyncio.Semaphore(READS_AT_ONCE)
        #: Objects that were given up: their ranges are not waited for again.
        self._given_up: set[str] = set()
        self._witnesses = tuple(witnesses)

    async def segments(self, prefix: str) -> list[Source]:
        """The segments there are, in a fixed order. Raises ObjectStoreError."""
        found: list[ObjectInfo] = [info async for info in self._store.list(prefix)]
        return [Source(i.key, i.size_bytes) for i in sorted(found, key=lambda i: i.key)]

    async def indexes(
        self, segments: Sequence[Source]
    ) -> AsyncIterator[tuple[int, list[SegmentEntry]]]:
        """Each readable segment's number and index. Raises ObjectStoreError if none answers."""
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
            self._give_up(source.key, error)
            return None

    async def _range(self, key: str, offset: int, length: int) -> bytes | None:
        """The bytes, or None if the object was given up."""
        async with self._free:
            budget = 0.0 if key in self._given_up else OBJECT_BUDGET_S
            try:
                return await self._patience.keep_trying(
                    lambda: self._store.get_range(key, offset, length),
                    budget,
                    batch_id=self._batch_id,
                    task="assembly",
                )
            except ObjectNotFoundError as error:
                self._give_up(key, error)
                return None
            except ObjectStoreError as error:
                if not await self._store_answers(key):
                    raise
                self._give_up(key, error)
                return None

    async def _store_answers(self, but: str) -> bool:
        """Whether the store answers when asked for another object."""
        for key in self._witnesses:
            if key != but:
                try:
                    await self._store.get_range(key, 0, 1)
                except ObjectNotFoundError:
                    return True
                except ObjectStoreError:
                    continue
                return True
        return False

    def _give_up(self, key: str, error: Exception) -> None:
        if key in self._given_up:
            return
        self._given_up.add(key)
        log.error(
            "An object of a batch can't be read; lines that only it holds are lost.",
            action="object_unreadable",
            batch_id=self._batch_id,
            key=key,
            error=str(error),
        )


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
