"""The lock on a data folder: one `backhaul up` at a time works on it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType


class FolderInUseError(Exception):
    """Another process works on the data folder; the message names it."""


class FolderLock:
    """Holds `<folder>/up.lock`. The kernel frees it when we die, however we die."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "up.lock"
        self._descriptor: int | None = None

    def __enter__(self) -> FolderLock:
        """Takes the lock, making the folder. Raises FolderInUseError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise FolderInUseError(
                f"The data folder {self._folder} is in use by `backhaul up` with pid {holder}. "
                "Stop that one, or use another folder with --data."
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The file stays: unlinking it would let two holders lock two different files.
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
