"""Commands that the controller has not folded yet, laid over what it has published of a batch.

    batch.command ──► controls ──┐
                                 ├─► shown
    batch.status  ──► snapshot ──┘

A snapshot names the latest commands in it, the same ones that the controller would know again. Of
each partition of batch.command, whatever comes after those is still to come; it is judged by the
rules of the domain, so that what a caller sees at once is what the controller will say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from api.read_model.statement import Statement
from schemas.records import BatchChange, BatchPause, BatchResume, BatchSnapshot, BatchStatus
from streams.domain.batch.control import MAX_COMMANDS, Control, changed
from streams.domain.batch.state import Terms
from streams.kafka.reader import ReadRecord

CONTROL_TABLES = """
CREATE TABLE controls (
    batch_id TEXT NOT NULL, command_id TEXT NOT NULL, tenant TEXT NOT NULL,
    place_partition INTEGER NOT NULL, place_offset INTEGER NOT NULL, kind TEXT NOT NULL,
    at_ms INTEGER NOT NULL, priority INTEGER, expires_at_ms INTEGER,
    PRIMARY KEY (batch_id, command_id)
) WITHOUT ROWID;
"""

#: The commands of the batch `b`, as one JSON array.
CONTROLS_OF_B = """
(SELECT json_group_array(json_array(k.place_partition, k.place_offset, k.command_id, k.kind,
    k.at_ms, k.priority, k.expires_at_ms))
FROM controls k WHERE k.batch_id = b.batch_id AND k.tenant = b.tenant)
"""

# Of a command that is repeated the first one in the log counts.
_INSERT = """
INSERT OR IGNORE INTO controls (batch_id, command_id, tenant, place_partition, place_offset, kind,
    at_ms, priority, expires_at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
# Those that the snapshot has stay: a repeat of one must be known by its first place in the log.
_FORGOTTEN = """
DELETE FROM controls WHERE batch_id = ?1 AND command_id NOT IN (SELECT value FROM json_each(?2))
AND EXISTS (
    SELECT 1 FROM controls k WHERE k.batch_id = controls.batch_id
    AND k.place_partition = controls.place_partition AND k.place_offset > controls.place_offset
    AND k.command_id IN (SELECT value FROM json_each(?2)))
"""
_OVER = "DELETE FROM controls WHERE batch_id = ?"
_KINDS: dict[type[Control], str] = {BatchPause: "pause", BatchResume: "resume"}
#: The states in which lines may be released, and those in which the terms may change.
PAUSABLE = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)
CHANGEABLE = (*PAUSABLE, BatchStatus.FINALIZING)


class ControlRow(NamedTuple):
    """A command as the table has it. kind: pause, resume or change."""

    partition: int
    offset: int
    command_id: str
    kind: str
    at_ms: int
    priority: int | None
    expires_at_ms: int | None


_rows = msgspec.json.Decoder(list[ControlRow])


def control_statements(read: ReadRecord, command: Control) -> Iterator[Statement]:
    """Keeps the command as long as it may be laid over a snapshot."""
    row = (command.batch_id, command.command_id, command.tenant, read.partition, read.offset)
    yield _INSERT, (*row, *_said(command))


def folded_statements(snapshot: BatchSnapshot) -> Iterator[Statement]:
    """Lets go of the commands that the batch has forgotten, or that have come too late."""
    if snapshot.status not in CHANGEABLE:
        yield _OVER, (snapshot.batch_id,)
    elif len(snapshot.commands) >= MAX_COMMANDS:
        commands = msgspec.json.encode(snapshot.commands).decode()
        yield _FORGOTTEN, (snapshot.batch_id, commands)


def with_rows(snapshot: BatchSnapshot, rows: str) -> BatchSnapshot:
    """The batch as it will be once the controller has folded these commands, too."""
    if rows == "[]" or snapshot.status not in CHANGEABLE:
        return snapshot
    for command in _to_come(snapshot, sorted(_rows.decode(rows))):
        snapshot = _with(snapshot, command)
    return snapshot


def with_control(snapshot: BatchSnapshot, command: Control) -> BatchSnapshot:
    """The batch as it will be once the controller has folded this command, too."""
    return _with(snapshot, ControlRow(0, 0, command.command_id, *_said(command)))


def _said(command: Control) -> tuple[str, int, int | None, int | None]:
    change = command if isinstance(command, BatchChange) else None
    return (
        _KINDS.get(type(command), "change"),
        command.at_ms,
        change.priority if change else None,
        change.expires_at_ms if change else None,
    )


def _to_come(snapshot: BatchSnapshot, rows: Iterable[ControlRow]) -> list[ControlRow]:
    waiting: dict[int, list[ControlRow]] = {}
    for row in rows:
        of_partition = waiting.setdefault(row.partition, [])
        if row.command_id in snapshot.commands:
            of_partition.clear()
        else:
            of_partition.append(row)
    return [row for of_partition in waiting.values() for row in of_partition]


def _with(snapshot: BatchSnapshot, row: ControlRow) -> BatchSnapshot:
    changes: dict[str, Any] = {}
    if row.kind == "change" and snapshot.status in CHANGEABLE:
        before = Terms(priority=snapshot.priority, expires_at_ms=snapshot.expires_at_ms)
        after = changed(before, _change(snapshot, row), snapshot.created_at_ms)
        changes = {"priority": after.priority, "expires_at_ms": after.expires_at_ms}
    elif row.kind == "resume":
        changes = {"paused_at_ms": None}
    elif row.kind == "pause" and snapshot.status in PAUSABLE and snapshot.paused_at_ms is None:
        # As the controller reckons: clocks differ a little, but nothing precedes the batch.
        changes = {"paused_at_ms": max(row.at_ms, snapshot.created_at_ms)}
    return msgspec.structs.replace(snapshot, **changes)


def _change(snapshot: BatchSnapshot, row: ControlRow) -> BatchChange:
    return BatchChange(
        command_id=row.command_id,
        batch_id=snapshot.batch_id,
        tenant=snapshot.tenant,
        at_ms=row.at_ms,
        priority=row.priority,
        expires_at_ms=row.expires_at_ms,
    )
