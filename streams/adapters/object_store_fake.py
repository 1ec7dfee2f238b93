"""A public in-memory object store for tests, with faults that can be switched on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from streams.domain.clock import Clock, SystemClock
from streams.ports.object_store import (
    ObjectInfo,
    ObjectNotFoundError,
    ObjectStoreError,
    ObjectStoreFullError,
    checked_key,
)


class FakeObjectStore:
    """An ObjectStore in a dict.

    objects: what is stored. full: writes raise ObjectStoreFullError while it is true.
    broken: keys whose reads always fail. fail(): makes the next calls fail. writers: writers
    open now; reads: reads at work now, and most_reads the most there were at once.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.objects: dict[str, bytes] = {}
        self.full = False
        self.broken: set[str] = set()
        self.writers = 0
        self.reads = 0
        self.most_reads = 0
        self._failures: dict[str, int] = {}
        self._modified: dict[str, int] = {}
        self._clock = clock or SystemClock()

    def fail(self, times: int, operation: str = "") -> None:
        """The next `times` calls of the operation (put, write, close, get, get_range, size,
        list, delete; '' is any) raise ObjectStoreError."""
        self._failures[operation] = times

    async def put(self, key: str, data: bytes) -> None:
        await self._begin("put", writes=True)
        self._store(checked_key(key), data)

    def writer(self, key: str) -> FakeObjectWriter:
        return FakeObjectWriter(self, checked_key(key))

    async def get(self, key: str) -> bytes:
        return await self._read("get", key, 0, None)

    async def get_range(self, key: str, offset: int, length: int) -> bytes:
        return await self._read("get_range", key, offset, length)

    async def stream(
        self, key: str, offset: int = 0, length: int | None = None, chunk_bytes: int = 1 << 20
    ) -> AsyncIterator[bytes]:
        size = await self.size(key)
        end = size if length is None else min(size, offset + length)
        while offset < end:
            piece = await self.get_range(key, offset, min(chunk_bytes, end - offset))
            yield piece
            offset += len(piece)

    async def size(self, key: str) -> int:
        await self._begin("size")
        return len(self._found(key))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        await self._begin("list")
        for key in sorted(self.objects):
            if key.startswith(prefix):
                yield ObjectInfo(key, len(self.objects[key]), self._modified.get(key, 0))

    async def delete(self, key: str) -> None:
        await self._begin("delete")
        self.objects.pop(checked_key(key), None)

    async def _read(self, operation: str, key: str, offset: int, length: int | None) -> bytes:
        self.reads += 1
        self.most_reads = max(self.most_reads, self.reads)
        try:
            await self._begin(operation)
            data = self._found(key)
            return data[offset:] if length is None else data[offset : offset + length]
        finally:
            self.reads -= 1

    async def _begin(self, operation: str, *, writes: bool = False) -> None:
        await asyncio.sleep(0)
        for name in (operation, ""):
            if self._failures.get(name, 0) > 0:
                self._failures[name] -= 1
                raise ObjectStoreError(f"{operation} was told to fail")
        if writes and self.full:
            raise ObjectStoreFullError("The object store has no room left.")

    def _found(self, key: str) -> bytes:
        if checked_key(key) not in self.objects:
            raise ObjectNotFoundError(f"There is no object '{key}'.")
        if key in self.broken:
            raise ObjectStoreError(f"'{key}' was told to fail")
        return self.objects[key]

    def _store(self, key: str, data: bytes) -> None:
        self.objects[key] = data
        self._modified[key] = self._clock.now_ms()


class FakeObjectWriter:
    """An ObjectWriter into a FakeObjectStore."""

    def __init__(self, store: FakeObjectStore, key: str) -> None:
        self._store = store
        self._key = key
        self._data = bytearray()
        self._ended = False
        store.writers += 1

    async def write(self, data: bytes) -> None:
        if self._ended:
            raise ObjectStoreError("This object is no longer being written.")
        await self._store._begin("write", writes=True)
        self._data += data

    async def close(self) -> None:
        if self._ended:
            return
        self._end()
        await self._store._begin("close", writes=True)
        self._store._store(self._key, bytes(self._data))

    async def abort(self) -> None:
        self._end()

    async def __aenter__(self) -> FakeObjectWriter:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            await self.abort()
        else:
            await self.close()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._store.writers -= 1
