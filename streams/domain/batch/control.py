"""Live control of a batch: pause, resume, and change of its terms.

None of them leaves the state that the batch is in. A paused batch releases no new line; those
that are out finish and count, and its window goes on, so that it may expire while it is paused.

command    validating, in_progress           finalizing               cancelling, ended
pause      paused_at is set, if it wasn't    nothing                  nothing
resume     paused_at is taken away           nothing                  nothing
change     priority, expires_at              priority, expires_at     nothing

A change is judged by its own clock (`at_ms`), so that whoever reads the command comes to the same
verdict, whenever. One that is not allowed changes nothing at all; and a window that is over is not
opened again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from schemas.records import AssembleReason, BatchChange, BatchPause, BatchResume
from streams.domain.batch.effects import Effect, PublishSnapshot, SteerLines
from streams.domain.batch.row import paused_at, snapshot_of
from streams.domain.batch.state import Finalizing, InProgress, Terms, Validating, event_time

MIN_PRIORITY, MAX_PRIORITY = -100, 100
#: Longest time from a batch's creation to a later end of its window: line.ready keeps 8 days.
MAX_LIFE_MS = 7 * 86_400_000
#: Most command ids a batch remembers: far more than the repeats that a producer's retries make.
MAX_COMMANDS = 64

Control = BatchPause | BatchResume | BatchChange
"""Commands that leave a batch in its state."""

Steerable = Validating | InProgress | Finalizing
"""The states in which a command may change something."""


def steer(batch: Steerable, command: Control, offset: int) -> tuple[Steerable, tuple[Effect, ...]]:
    """The batch after a command that is new to it, and what is to be done."""
    # Remembered even if it changes nothing: repeated later, it must still change nothing.
    seen = replace(batch, watermark=offset, commands=remember(batch.commands, command.command_id))
    after = _applied(seen, command)
    if (after.terms, paused_at(after)) == (batch.terms, paused_at(batch)):
        return after, ()
    effects: tuple[Effect, ...] = (PublishSnapshot(snapshot_of(after)),)
    if isinstance(after, InProgress):
        paused = after.paused_at_ms is not None
        effects = (SteerLines(after.request.batch_id, after.terms, paused), *effects)
    return after, effects


def changed(terms: Terms, change: BatchChange, created_at_ms: int) -> Terms:
    """The terms after a change; the same ones if it is not allowed."""
    priority = terms.priority if change.priority is None else change.priority
    expires_at_ms = terms.expires_at_ms
    if change.expires_at_ms is not None:
        # The API shows whole seconds, so the window ends on one.
        expires_at_ms = change.expires_at_ms // 1000 * 1000
        over = change.at_ms >= terms.expires_at_ms
        latest_ms = max(created_at_ms + MAX_LIFE_MS, terms.expires_at_ms)
        if over or not change.at_ms < expires_at_ms <= latest_ms:
            return terms
    return Terms(priority=priority, expires_at_ms=expires_at_ms) if allowed(priority) else terms


def allowed(priority: int) -> bool:
    """Whether a batch may have this priority."""
    return MIN_PRIORITY <= priority <= MAX_PRIORITY


def remember(commands: tuple[str, ...], command_id: str) -> tuple[str, ...]:
    """The ids of the commands folded, with one more."""
    return (*commands, command_id)[-MAX_COMMANDS:]


def _applied(batch: Steerable, command: Control) -> Steerable:
    match command:
        case BatchChange():
            if isinstance(batch, Finalizing) and batch.reason is AssembleReason.EXPIRED:
                return batch
            return replace(batch, terms=changed(batch.terms, command, batch.request.created_at_ms))
        case BatchPause():
            if isinstance(batch, Finalizing) or batch.paused_at_ms is not None:
                return batch
            return replace(batch, paused_at_ms=event_time(command.at_ms, batch.request))
        case BatchResume():
            return batch if isinstance(batch, Finalizing) else replace(batch, paused_at_ms=None)
        case _:
            assert_never(command)
