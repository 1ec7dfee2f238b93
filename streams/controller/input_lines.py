"""Reads plan rows and lines by range, through a small cache of aligned blocks.

Neighbouring slices come from neighbouring bytes, so blocks are read ahead; a file is never read
whole, and however many batches are open the cache stays as large as it is.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from schemas.records import ClaimCheck, ObjectRef, ReadyLine
from streams.domain.dispatch.slice import LineAt, Picked
from streams.domain.plan import PlanError, pins_range, read_rows, rows_range
from streams.ports.object_store import ObjectStore

#: One read of the object store: many lines, and little to throw away.
BLOCK_BYTES = 256 * 1024
#: Blocks kept: 16 MiB, a few for each slice that is being read.
BLOCKS = 64
#: A lane with few lines of its own looks through so many pages at once.
PAGES_AT_ONCE = 16

_Key = tuple[str, int]


class Blocks:
    """Aligned blocks of objects, each read once and kept while it is in use or recent."""

    def __init__(self, store: ObjectStore, *, blocks: int = BLOCKS) -> None:
        self._store = store
        self._limit = blocks
        self._kept: OrderedDict[_Key, asyncio.Task[bytes]] = OrderedDict()

    async def block(self, key: str, number: int) -> bytes:
        """One whole block; the last of an object is shorter. Raises ObjectStoreError."""
        task = self._block(key, number)
        return task.result() if task.done() else await asyncio.shield(task)

    async def read(self, key: str, offset: int, length: int) -> bytes:
        """The bytes [offset, offset + length). Raises ObjectStoreError."""
        if length <= 0:
            return b""
        first, last = offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES
        wanted = [self._block(key, number) for number in range(first, last + 1)]
        parts = [await asyncio.shield(block) for block in wanted]
        start = offset - first * BLOCK_BYTES
        whole = parts[0] if len(parts) == 1 else b"".join(parts)
        return whole[start : start + length]

    def ahead(self, ref: ObjectRef, offset: int) -> None:
        """Begins to read the block that comes after the one with this byte."""
        number = offset // BLOCK_BYTES + 1
        if number * BLOCK_BYTES < ref.size_bytes:
            self._block(ref.key, number)

    async def close(self) -> None:
        """Lets go of everything."""
        tasks = list(self._kept.values())
        self._kept.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _block(self, key: str, number: int) -> asyncio.Task[bytes]:
        at = (key, number)
        task = self._kept.get(at)
        if task is None:
            read = self._store.get_range(key, number * BLOCK_BYTES, BLOCK_BYTES)
            task = self._kept[at] = asyncio.create_task(read)
            task.add_done_callback(lambda done: self._finished(at, done))
            self._evict()
        self._kept.move_to_end(at)
        return task

    def _finished(self, at: _Key, task: asyncio.Task[bytes]) -> None:
        if task.cancelled() or task.exception() is not None:
            # A failed read is not remembered: the next one tries again.
            self._kept.pop(at, None)

    def _evict(self) -> None:
        excess = len(self._kept) - self._limit
        for at in [at for at, task in self._kept.items() if task.done()][: max(0, excess)]:
            del self._kept[at]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a batch's lines are.

    lanes: the dispatcher's lane of each model number; then those of lines that wait for the
    sandbox, if they have lanes of their own: `models` says how many models there are.
    """

    input: ObjectRef
    plan: ObjectRef
    total: int
    lanes: tuple[int, ...]
    models: int = 0

    @property
    def pins(self) -> ClaimCheck | None:
        """Where the plan holds the prompt versions that lines use; None if none does."""
        offset, length = pins_range(self.total, self.plan.size_bytes)
        return ClaimCheck(key=self.plan.key, offset=offset, length=length) if length else None


class InputLines:
    """Lines of input files, as the dispatcher asks for them."""

    def __init__(self, store: ObjectStore, claim_check_bytes: int) -> None:
        self._blocks = Blocks(store)
        self._claim_check_bytes = claim_check_bytes

    async def rows(
        self, source: Source, lane: int, cursor: int, count: int
    ) -> tuple[list[LineAt], int]:
        """The lane's plan rows from `cursor` on, and the new cursor.

        Goes on for some pages until there is one. Raises ObjectStoreError, PlanError.
        """
        found: list[LineAt] = []
        for _ in range(PAGES_AT_ONCE):
            page = min(count, source.total - cursor)
            if page <= 0 or found:
                break
            found = await self._page(source, lane, cursor, page)
            cursor += page
        return found, cursor

    async def lines(self, source: Source, picked: Sequence[Picked]) -> tuple[ReadyLine, ...]:
        """The lines as they travel. Raises ObjectStoreError, PlanError."""
        lines: list[ReadyLine] = []
        key, current, block = source.input.key, -1, b""
        for at, attempt in picked:
            pin = at.pin
            if at.length > self._claim_check_bytes:
                claim = ClaimCheck(key=key, offset=at.offset, length=at.length)
                lines.append(ReadyLine(line=at.line, attempt=attempt, claim=claim, pin=pin))
                continue
            number, start = divmod(at.offset, BLOCK_BYTES)
            if start + at.length > BLOCK_BYTES:
                raw = await self._blocks.read(key, at.offset, at.length)
            else:
                if number != current:
                    current, block = number, await self._blocks.block(key, number)
                raw = block[start : start + at.length]
            if len(raw) != at.length:
                raise PlanError("a row lies beyond the input file's end")
            lines.append(ReadyLine(line=at.line, attempt=attempt, raw=raw, pin=pin))
        last = picked[-1]
        if last.attempt == 1:
            self._blocks.ahead(source.input, last.at.offset + last.at.length)
        return tuple(lines)

    async def close(self) -> None:
        """Lets go of what is read ahead."""
        await self._blocks.close()

    async def _page(self, source: Source, lane: int, first: int, count: int) -> list[LineAt]:
        offset, length = rows_range(first, count)
        data = await self._blocks.read(source.plan.key, offset, length)
        if len(data) != length:
            raise PlanError("shorter than the batch's number of lines")
        lanes, models = source.lanes, source.models
        rows = enumerate(read_rows(data), first)
        try:
            return [
                LineAt(n, r.offset, r.length, r.pin)
                for n, r in rows
                if lanes[r.model + models if r.sandboxed else r.model] == lane
            ]
        except IndexError as error:
            raise PlanError("a row names a model that the batch doesn't have") from error
