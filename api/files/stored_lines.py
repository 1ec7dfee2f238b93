"""The lines of a stored file, one after the other. Memory: a chunk and a line."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from schemas.records import ObjectRef
from streams.ports.object_store import ObjectStore

_CHUNK_BYTES = 256 * 1024


async def stored_lines(store: ObjectStore, ref: ObjectRef) -> AsyncGenerator[bytes, None]:
    """An object's lines, without their newlines. Raises ObjectStoreError."""
    rest: list[bytes] = []
    async with aclosing(_chunks(store, ref)) as chunks:
        async for chunk in chunks:
            first, *others = chunk.split(b"\n")
            rest.append(first)
            for line in others:
                yield b"".join(rest)
                rest = [line]
    if last := b"".join(rest):
        yield last


async def _chunks(store: ObjectStore, ref: ObjectRef) -> AsyncGenerator[bytes, None]:
    stream: AsyncIterator[bytes] = store.stream(ref.key, 0, ref.size_bytes, _CHUNK_BYTES)
    async for chunk in stream:
        yield chunk
