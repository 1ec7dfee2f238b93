"""A meter sink for those who have no Stripe: one JSON line for each amount, in files to export.

    FOLDER/<day of the usage, UTC>/<tenant>.jsonl

A tenant is billed by one process at a time, so a file has one writer. An identifier that is in
its file already isn't written again, and half a line that a crash has left is removed: there is
exactly one line for each.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import msgspec
from msgspec.structs import replace

from streams.adapters.object_store_local import sync_folder
from streams.ports.meter_sink import EventRefused, MeterEvent, RefusalCode, SinkUnavailable

#: Files whose identifiers are remembered.
_FILES_KNOWN = 1000
_DAY_MS = 86_400_000
#: A longer name is no file's.
_MAX_NAME_CHARS = 200
T = TypeVar("T")


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a file."""

    identifier: str
    event_name: str
    customer: str
    tokens: int
    at_ms: int
    cancels: str | None = None
    dimensions: dict[str, str] = {}


@dataclass(slots=True)
class _Known:
    """What of a file was read: so many bytes, with these identifiers."""

    size: int = 0
    identifiers: set[str] = field(default_factory=set)


class FileMeterSink:
    """Writes to a folder of this machine."""

    needs_customer = False
    sums_lag_s = 0.0

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: OrderedDict[Path, _Known] = OrderedDict()
        self._lock = asyncio.Lock()

    async def send(self, event: MeterEvent) -> None:
        """Returns when the line is on the disk."""
        entry = Entry(
            identifier=event.identifier,
            event_name=event.event_name,
            customer=event.customer,
            tokens=event.tokens,
            at_ms=event.at_ms,
            dimensions=dict(event.dimensions),
        )
        await self._write(entry)

    async def total(self, customer: str, event_name: str, start_ms: int, end_ms: int) -> int:
        """The sum over the customer's files of these days."""
        return await self._done(lambda: self._total(customer, event_name, start_ms, end_ms))

    async def cancel(self, identifier: str, event_name: str) -> None:
        """Writes a line that takes the other one back."""
        found = await self._done(lambda: self._find(identifier, event_name))
        if found is None:
            raise EventRefused(RefusalCode.INVALID_REQUEST)
        undo = f"{identifier}:cancelled"
        await self._write(replace(found, identifier=undo, tokens=-found.tokens, cancels=identifier))

    async def close(self) -> None:
        """Nothing to close: every line is on the disk."""

    async def _write(self, entry: Entry) -> None:
        await self._done(lambda: self._append(entry))

    async def _done(self, work: Callable[[], T]) -> T:
        """In a thread, one at a time. A disk that fails may be well again later."""
        async with self._lock:
            try:
                return await asyncio.to_thread(work)
            except OSError as error:
                raise SinkUnavailable("disk") from error

    def _append(self, entry: Entry) -> None:
        path = self._path(entry.customer, entry.at_ms)
        known = self._known_of(path)
        if entry.identifier in known.identifiers:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        line = msgspec.json.encode(entry) + b"\n"
        with path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
        known.size += len(line)
        known.identifiers.add(entry.identifier)

    def _known_of(self, path: Path) -> _Known:
        """What the file holds; read again if it isn't as we left it."""
        known = self._known.setdefault(path, _Known())
        self._known.move_to_end(path)
        if len(self._known) > _FILES_KNOWN:
            self._known.popitem(last=False)
        size = path.stat().st_size if path.exists() else 0
        if size != known.size:
            known.size = _cut_torn_line(path)
            known.identifiers = {entry.identifier for entry in read_entries(path)}
        return known

    def _total(self, customer: str, event_name: str, start_ms: int, end_ms: int) -> int:
        days = range(start_ms // _DAY_MS * _DAY_MS, end_ms, _DAY_MS)
        return sum(
            entry.tokens
            for path in {self._path(customer, day_ms) for day_ms in days}
            for entry in read_entries(path)
            if (entry.customer, entry.event_name) == (customer, event_name)
            and start_ms <= entry.at_ms < end_ms
        )

    def _find(self, identifier: str, event_name: str) -> Entry | None:
        for path in sorted(self._folder.glob("*/*.jsonl")):
            for entry in read_entries(path):
                if entry.identifier == identifier and entry.event_name == event_name:
                    return entry
        return None

    def _path(self, customer: str, at_ms: int) -> Path:
        day = datetime.fromtimestamp(at_ms / 1000, UTC).date().isoformat()
        name = quote(customer, safe="")
        if name.strip(".") == "" or len(name) > _MAX_NAME_CHARS:
            name = hashlib.sha256(customer.encode()).hexdigest()
        return self._folder / day / f"{name}.jsonl"


def read_entries(path: Path) -> Iterator[Entry]:
    """The whole lines of a file; none if it isn't there."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield msgspec.json.decode(line, type=Entry)


def _cut_torn_line(path: Path) -> int:
    """Removes what follows the last whole line; how many bytes are left."""
    if not path.exists():
        return 0
    with path.open("r+b") as file:
        end = file.read().rfind(b"\n") + 1
        file.truncate(end)
    return end
