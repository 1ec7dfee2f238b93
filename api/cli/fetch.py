"""Fetching a file to disk: streamed, resumed where it broke off, and whole or not at all."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from api.cli.client import Client, ConnectionLost, Progress
from api.cli.failure import TransferFailed

_FIRST_PAUSE_S = 0.25
#: Tries in a row that brought no byte.
_MAX_BARREN_TRIES = 5


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file on disk. resumed_from: bytes that an earlier run had left; new: False if all of it."""

    path: Path
    size_bytes: int
    resumed_from: int = 0
    new: bool = True


def fetch(
    client: Client,
    file_id: str,
    target: Path,
    *,
    sleep: Callable[[float], None],
    progress: Callable[[int], Progress] | None = None,
    force: bool = False,
) -> Fetched:
    """Fetches the content to `target`, by way of `<target>.<file id>.part`.

    progress: called with the size, gives what is called with the bytes that came. A target of
    the right size is left as it is unless `force`. Raises TransferFailed and what HTTP raises.
    """
    size = int(client.get_file(file_id).get("bytes") or 0)
    if not force and target.is_file() and target.stat().st_size == size:
        return Fetched(target, size, size, new=False)
    part = target.with_name(f"{target.name}.{file_id}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file:
            _lock(file, part)
            resumed = _resume_point(file, size)
            tell = progress(size) if progress else _silent
            tell(resumed)
            _fill(client, file_id, file, size, tell, sleep)
            file.flush()
            os.fsync(file.fileno())
            part.replace(target)
    except OSError as error:
        raise TransferFailed(f"{target} can't be written: {error.strerror or error}.") from error
    return Fetched(target, size, resumed)


def _silent(count: int) -> None:
    """Nobody watches."""


def _lock(file: BinaryIO, part: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TransferFailed(f"Another download is writing {part}.") from None


def _resume_point(file: BinaryIO, size: int) -> int:
    """How many bytes are there already; more than there can be are thrown away."""
    there = file.seek(0, os.SEEK_END)
    if there > size:
        file.truncate(0)
        return 0
    return there


def _fill(
    client: Client,
    file_id: str,
    file: BinaryIO,
    size: int,
    tell: Progress,
    sleep: Callable[[float], None],
) -> None:
    barren = 0
    while (there := file.tell()) < size:
        lost: ConnectionLost | None = None
        try:
            for chunk in client.content(file_id, there):
                file.write(chunk)
                tell(len(chunk))
        except ConnectionLost as error:
            lost = error
        if file.tell() > size:
            raise TransferFailed("The server sent more than the file's size.")
        barren = barren + 1 if file.tell() == there else 0
        if barren == _MAX_BARREN_TRIES:
            raise TransferFailed(
                f"The download broke off at {there:,} of {size:,} bytes ({lost or 'no data'}).",
                "Run the same command again to go on from there.",
            )
        if file.tell() < size:
            sleep(_FIRST_PAUSE_S * 2**barren)
