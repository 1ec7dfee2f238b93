"""Writes to a folder that survive a power cut: stage, sync, rename, sync the folder.

obstore's local store writes and renames but never syncs (seen with strace, 0.12.1). After a power
cut the log could then name a segment whose bytes are gone, while Kafka's own pages happened to
reach the disk: a counted line without its answer. So an object is on the disk before its name
is, and its name before anybody is told of it. It costs about 0.5 ms on an SSD.

Staged files lie in one folder beside the objects, locked (flock) by the process that writes
them. Those whose writer is dead are removed when a store is opened, and now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import uuid_utils

from streams.ports.object_store import ObjectStoreError, ObjectStoreFullError

T = TypeVar("T")

#: Folder of objects being written, and the prefix that listings leave out.
STAGING = ".staging/"
#: Small writes are gathered up to this size before they go to a thread.
_BUFFER_BYTES = 1 << 20
#: File operations of one store at once; more would not make a disk faster.
_THREADS = 8
#: A staged file is younger than this between its creation and its lock.
_UNLOCKED_GRACE_S = 60.0
#: Between two looks for files of dead writers: one that died just now is passed over at first.
_SWEEP_S = 300.0
#: How often a commit makes the folder again that a delete next to it has just removed.
_COMMIT_ATTEMPTS = 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class LocalDisk:
    """A folder that objects are written to. Its threads keep file operations off the loop."""

    def __init__(self, root: Path) -> None:
        """Makes the folder where it is missing. Raises OSError."""
        self.root = root
        self.staging = root / STAGING
        self.staging.mkdir(parents=True, exist_ok=True)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="object-store")
        self._swept_s = float("-inf")
        self.sweep()

    def writer(self, key: str) -> LocalWriter:
        """An ObjectWriter for the key."""
        return LocalWriter(self, self.root / key)

    def sweep(self) -> None:
        """Removes what dead writers left, if that was not done lately. For threads."""
        if time.monotonic() - self._swept_s > _SWEEP_S:
            self._swept_s = time.monotonic()
            _remove_abandoned(self.staging)

    def run(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Runs a file operation on a thread."""
        return asyncio.get_running_loop().run_in_executor(self._threads, call)


class LocalWriter:
    """An ObjectWriter on a folder; about 1 MB of memory."""

    def __init__(self, disk: LocalDisk, target: Path) -> None:
        self._disk = disk
        self._target = target
        self._staged = disk.staging / uuid_utils.uuid7().hex
        self._descriptor = -1
        self._buffer = bytearray()
        self._running: asyncio.Future[None] | None = None
        self._ended = False

    async def write(self, data: bytes) -> None:
        if self._ended:
            raise ObjectStoreError("This object is no longer being written.")
        self._buffer += data
        if len(self._buffer) >= _BUFFER_BYTES:
            await self._run(self._append)

    async def close(self) -> None:
        if self._ended:
            return
        self._ended = True
        await self._run(self._commit)

    async def abort(self) -> None:
        self._ended = True
        if self._running is not None:
            # Whoever was cancelled left a thread at work on the file.
            await asyncio.wait([self._running])
        await asyncio.shield(self._disk.run(self._drop))

    async def __aenter__(self) -> LocalWriter:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            await self.abort()
        else:
            await self.close()

    async def _run(self, call: Callable[[], None]) -> None:
        self._running = self._disk.run(call)
        try:
            await asyncio.shield(self._running)
        except OSError as error:
            self._ended = True
            await self.abort()
            if error.errno in _FULL:
                raise ObjectStoreFullError("The object store has no room left.") from error
            raise ObjectStoreError(f"Cannot write the object: {error.strerror}") from error

    def _append(self) -> None:
        if self._descriptor < 0:
            self._disk.sweep()
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            self._descriptor = os.open(self._staged, flags, 0o640)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        left = memoryview(bytes(self._buffer))
        self._buffer.clear()
        while left:
            left = left[os.write(self._descriptor, left) :]

    def _commit(self) -> None:
        self._append()
        os.fsync(self._descriptor)
        self._rename()
        os.close(self._descriptor)
        self._descriptor = -1
        sync_folder(self._target.parent)

    def _rename(self) -> None:
        for attempt in range(_COMMIT_ATTEMPTS):
            _make_folder(self._target.parent, self._disk.root)
            try:
                self._staged.replace(self._target)
            except FileNotFoundError:
                if attempt == _COMMIT_ATTEMPTS - 1 or not self._staged.exists():
                    raise
            else:
                return

    def _drop(self) -> None:
        self._buffer.clear()
        self._staged.unlink(missing_ok=True)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _make_folder(folder: Path, root: Path) -> None:
    """Makes the folder and those above it, and syncs the entries of the new ones."""
    if folder == root or folder.is_dir():
        return
    _make_folder(folder.parent, root)
    with contextlib.suppress(FileExistsError, FileNotFoundError):
        folder.mkdir()
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_abandoned(staging: Path) -> None:
    for staged in staging.iterdir():
        # Another process may commit or remove the same file at this moment.
        with contextlib.suppress(OSError):
            if time.time() - staged.stat().st_mtime > _UNLOCKED_GRACE_S and _unlocked(staged):
                staged.unlink()


def _unlocked(staged: Path) -> bool:
    descriptor = os.open(staged, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
