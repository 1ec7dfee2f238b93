"""Streamed writes to a bucket: one plain upload if small, a multipart upload otherwise.

The multipart upload is obstore's, fed from an async iterator, because that is the form in which
obstore aborts it when the feeder fails: a dropped writer would leave paid-for parts in the bucket.
(A process that is killed leaves them all the same; docs/operations.md has the bucket's rule.)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import obstore
from obstore.exceptions import BaseError

from streams.ports.object_store import ObjectStoreError

#: Size of a part; S3's smallest. With the parts in flight it bounds a writer's memory.
PART_BYTES = 5 << 20
_PARTS_IN_FLIGHT = 2


class _AbortError(Exception):
    """The writer was aborted; ends the feeding iterator."""


class RemoteWriter:
    """An ObjectWriter on a bucket; about 20 MB of memory at most."""

    def __init__(
        self,
        store: obstore.store.ObjectStore,
        key: str,
        mapped: Callable[[BaseException], ObjectStoreError],
    ) -> None:
        self._store = store
        self._key = key
        self._mapped = mapped
        self._buffer = bytearray()
        self._parts: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)
        self._upload: asyncio.Task[object] | None = None
        self._aborted = False
        self._ended = False

    async def write(self, data: bytes) -> None:
        if self._ended:
            raise ObjectStoreError("This object is no longer being written.")
        for start in range(0, len(data), PART_BYTES):
            self._buffer += data[start : start + PART_BYTES]
            while len(self._buffer) > PART_BYTES:
                part = bytes(memoryview(self._buffer)[:PART_BYTES])
                del self._buffer[:PART_BYTES]
                await self._hand_over(part)

    async def close(self) -> None:
        if self._ended:
            return
        self._ended = True
        rest = bytes(self._buffer)
        self._buffer.clear()
        try:
            if self._upload is None:
                await obstore.put_async(self._store, self._key, rest, use_multipart=False)
                return
            await self._hand_over(rest)
            await self._hand_over(None)
            await self._upload
        except (OSError, BaseError) as error:
            raise self._mapped(error) from error

    async def abort(self) -> None:
        self._ended = self._aborted = True
        self._buffer.clear()
        if self._upload is None:
            return
        while not self._parts.empty():
            self._parts.get_nowait()
        self._parts.put_nowait(None)
        # The upload ends with our own error or with the store's; either way it is over.
        await asyncio.wait([self._upload])
        if not self._upload.cancelled():
            self._upload.exception()

    async def __aenter__(self) -> RemoteWriter:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            await self.abort()
            return
        try:
            await self.close()
        except asyncio.CancelledError:
            await self.abort()
            raise

    async def _hand_over(self, part: bytes | None) -> None:
        """Queues a part, or fails at once if the upload has ended meanwhile."""
        if self._upload is None:
            self._upload = asyncio.create_task(self._run())
        put = asyncio.create_task(self._parts.put(part))
        try:
            await asyncio.wait([put, self._upload], return_when=asyncio.FIRST_COMPLETED)
            if self._upload.done():
                try:
                    self._upload.result()
                except (OSError, BaseError) as error:
                    raise self._mapped(error) from error
        finally:
            put.cancel()

    async def _run(self) -> object:
        return await obstore.put_async(
            self._store,
            self._key,
            self._feed(),
            chunk_size=PART_BYTES,
            max_concurrency=_PARTS_IN_FLIGHT,
        )

    async def _feed(self) -> AsyncIterator[bytes]:
        while True:
            part = await self._parts.get()
            if self._aborted:
                raise _AbortError
            if part is None:
                return
            yield part
