"""The real object store, through obstore: a local folder, S3, Google Cloud Storage or Azure.

    open_store("/var/lib/backhaul/objects")   a folder: writes are staged, synced and renamed
    open_store("s3://bucket/prefix")          S3 and what speaks it (AWS_* and AWS_ENDPOINT_URL)
    open_store("gs://bucket/prefix")          Google Cloud Storage (GOOGLE_* variables)
    open_store("az://account/container/...")  Azure (AZURE_* variables)

Reads are ranged everywhere: one long response would have to be read within obstore's request
time-out, and whoever downloads a file may be slow.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, from_url

from streams.adapters.object_store_local import STAGING, LocalDisk
from streams.adapters.object_store_remote import RemoteWriter
from streams.ports.object_store import (
    ObjectInfo,
    ObjectNotFoundError,
    ObjectStore,
    ObjectStoreError,
    ObjectStoreFullError,
    ObjectWriter,
    checked_key,
)

if TYPE_CHECKING:  # obstore has these two for type checkers only
    from obstore.store import ClientConfig, RetryConfig

_SCHEMES = ("file", "s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl")
#: obstore's own retries bridge a blip; longer trouble is for the caller, who knows what may wait.
_RETRY: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}
#: A remote store is read in pieces of at least this size, because each costs a round trip.
_REMOTE_READ_BYTES = 4 << 20
#: What a full disk or an exhausted quota looks like in obstore's messages.
_FULL = re.compile(r"os error (27|28|122)\b|StorageFull|QuotaExceeded|507 Insufficient", re.I)


def open_store(url_or_path: str) -> ObjectStore:
    """The store at a folder or URL; a missing folder is made. Raises ObjectStoreError."""
    parts = urlsplit(url_or_path)
    try:
        if parts.scheme == "file":
            return _LocalObjectStore(Path(unquote(parts.path)))
        if "://" not in url_or_path:
            return _LocalObjectStore(Path(url_or_path))
        if parts.scheme not in _SCHEMES:
            raise ObjectStoreError(
                f"No object store for '{parts.scheme}://': use a folder, s3://, gs:// or az://."
            )
        client: ClientConfig = {"allow_http": _plain_http_endpoint()}
        return _RemoteObjectStore(from_url(url_or_path, client_options=client, retry_config=_RETRY))
    except (OSError, BaseError, ValueError) as error:
        raise ObjectStoreError(f"Cannot open the object store: {_first_line(error)}") from error


def _plain_http_endpoint() -> bool:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return any(os.environ.get(name, "").startswith("http://") for name in names)


def _first_line(error: BaseException) -> str:
    # obstore appends a debug dump, and a remote server's answer may be a page long.
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _mapped(error: BaseException, key: str) -> ObjectStoreError:
    if isinstance(error, FileNotFoundError):
        return ObjectNotFoundError(f"There is no object '{key}'.")
    text = str(error)
    if _FULL.search(text):
        return ObjectStoreFullError("The object store has no room left.")
    return ObjectStoreError(_first_line(error))


class _ReadableStore:
    """What a folder and a bucket have in common: reading, listing, deleting."""

    _read_bytes = 1 << 20

    def __init__(self, store: obstore.store.ObjectStore) -> None:
        self._store = store

    async def get(self, key: str) -> bytes:
        try:
            result = await obstore.get_async(self._store, checked_key(key))
            return bytes(await result.bytes_async())
        except (OSError, BaseError) as error:
            raise _mapped(error, key) from error

    async def get_range(self, key: str, offset: int, length: int) -> bytes:
        if length > 0:
            try:
                found = await obstore.get_range_async(
                    self._store, checked_key(key), start=offset, length=length
                )
                return bytes(found)
            except (OSError, BaseError) as error:
                mapped = _mapped(error, key)
                if isinstance(mapped, ObjectNotFoundError):
                    raise mapped from error
                # A range that begins at or behind the end is an error to every store, with
                # another text in each; the size tells it from a real one.
                if offset < await self.size(key):
                    raise mapped from error
                return b""
        await self.size(key)
        return b""

    async def stream(
        self, key: str, offset: int = 0, length: int | None = None, chunk_bytes: int = 1 << 20
    ) -> AsyncIterator[bytes]:
        end = await self.size(key)
        if length is not None:
            end = min(end, offset + length)
        while offset < end:
            piece = await self.get_range(
                key, offset, min(end - offset, max(chunk_bytes, self._read_bytes))
            )
            if not piece:
                raise ObjectStoreError(f"The object '{key}' ended early.")
            for start in range(0, len(piece), chunk_bytes):
                yield piece[start : start + chunk_bytes]
            offset += len(piece)

    async def size(self, key: str) -> int:
        try:
            return int((await obstore.head_async(self._store, checked_key(key)))["size"])
        except (OSError, BaseError) as error:
            raise _mapped(error, key) from error

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        # obstore's prefixes end at a slash; the rest of ours is matched here.
        folder = prefix[: prefix.rfind("/") + 1]
        try:
            async for metas in obstore.list(self._store, prefix=folder or None):
                for meta in metas:
                    key = meta["path"]
                    if key.startswith(prefix) and not key.startswith(STAGING):
                        at = meta["last_modified"]
                        yield ObjectInfo(key, meta["size"], round(at.timestamp() * 1000))
        except FileNotFoundError:
            return
        except (OSError, BaseError) as error:
            raise _mapped(error, prefix) from error

    async def delete(self, key: str) -> None:
        try:
            await obstore.delete_async(self._store, checked_key(key))
        except FileNotFoundError:
            return
        except (OSError, BaseError) as error:
            raise _mapped(error, key) from error


class _RemoteObjectStore(_ReadableStore):
    """A bucket."""

    _read_bytes = _REMOTE_READ_BYTES

    async def put(self, key: str, data: bytes) -> None:
        try:
            # Without this, obstore's multipart upload would begin at 5 MB and cost three requests.
            whole = len(data) <= 16 << 20
            await obstore.put_async(
                self._store, checked_key(key), data, use_multipart=False if whole else None
            )
        except (OSError, BaseError) as error:
            raise _mapped(error, key) from error

    def writer(self, key: str) -> ObjectWriter:
        return RemoteWriter(self._store, checked_key(key), lambda error: _mapped(error, key))


class _LocalObjectStore(_ReadableStore):
    """A folder. obstore reads it; writing is ours, because obstore's does not sync to disk."""

    def __init__(self, root: Path) -> None:
        self._disk = LocalDisk(root.absolute())
        super().__init__(LocalStore(root.absolute(), automatic_cleanup=True))

    async def put(self, key: str, data: bytes) -> None:
        async with self.writer(key) as writer:
            await writer.write(data)

    def writer(self, key: str) -> ObjectWriter:
        return self._disk.writer(checked_key(key))
