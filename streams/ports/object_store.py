"""The object store: where files, plans and segments lie. Keys come from streams.domain.keys."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


class ObjectStoreError(Exception):
    """The object store failed; trying again later may work."""


class ObjectNotFoundError(ObjectStoreError):
    """There is no object with this key."""


class ObjectStoreFullError(ObjectStoreError):
    """The object store has no room left."""


_KEY = re.compile(r"[A-Za-z0-9._=@:+-]+(/[A-Za-z0-9._=@:+-]+)*")


def checked_key(key: str) -> str:
    """The key, if it means the same in every store: ids and slashes, no part of dots alone.

    Ids come from callers too (who may write commands straight to Kafka), so every adapter asks
    this first: no key leaves the store's root. Raises ObjectNotFoundError, since there can be
    no such object and trying again will not help.
    """
    if len(key) > 900 or not _KEY.fullmatch(key) or any(not p.strip(".") for p in key.split("/")):
        raise ObjectNotFoundError("There can be no object with this key.")
    return key


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object in a listing: key, size in bytes, last change as Unix milliseconds."""

    key: str
    size_bytes: int
    modified_ms: int


class ObjectWriter(Protocol):
    """An object being written; it appears whole at close(), or never.

    Use as an async context manager: leaving it with an exception aborts, otherwise closes.
    """

    async def write(self, data: bytes) -> None:
        """Appends. Memory stays flat however much is written."""
        ...

    async def close(self) -> None:
        """Makes the object visible. Raises ObjectStoreError, and then there is no object."""
        ...

    async def abort(self) -> None:
        """Drops what was written and leaves nothing behind."""
        ...

    async def __aenter__(self) -> ObjectWriter: ...

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None: ...


class ObjectStore(Protocol):
    """A flat space of immutable objects. Every method may raise ObjectStoreError."""

    async def put(self, key: str, data: bytes) -> None:
        """Writes a small object at once."""
        ...

    def writer(self, key: str) -> ObjectWriter:
        """Starts a streamed write."""
        ...

    async def get(self, key: str) -> bytes:
        """A small object, whole. Raises ObjectNotFoundError."""
        ...

    async def get_range(self, key: str, offset: int, length: int) -> bytes:
        """The bytes [offset, offset + length), fewer at the object's end."""
        ...

    def stream(
        self, key: str, offset: int = 0, length: int | None = None, chunk_bytes: int = 1 << 20
    ) -> AsyncIterator[bytes]:
        """The bytes from offset on, in chunks of about chunk_bytes."""
        ...

    async def size(self, key: str) -> int:
        """Size in bytes. Raises ObjectNotFoundError."""
        ...

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Objects whose key begins with prefix, in no promised order."""
        ...

    async def delete(self, key: str) -> None:
        """Removes an object; removing one that isn't there is no error."""
        ...
