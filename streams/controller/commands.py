"""Re-emits commands onto batch.event, at the partition that we compute.

Gateways and direct producers write batch.command with whatever partitioner they have. From here
on a batch has one log, and one order of everything that happens to it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast

import structlog

from schemas.records import BatchCancel, BatchChange, BatchCreate
from schemas.topics import BATCH_EVENT
from streams.controller.ports import Sender
from streams.domain.batch.control import MAX_PRIORITY, MIN_PRIORITY, Control, allowed
from streams.kafka.failpoint import reach
from streams.kafka.queued import Queued
from streams.kafka.role import Consumed

log = structlog.get_logger(__name__)

#: A batch id becomes part of object keys, so it must be harmless in one.
_BATCH_ID = re.compile(r"batch_[A-Za-z0-9_-]{1,128}")
_AT_ONCE = 100

Command = BatchCreate | BatchCancel | Control
Reject = Callable[[Consumed, str], Awaitable[None]]


class CommandRelay:
    """Work on batch.command."""

    def __init__(self, sender: Sender, reject: Reject) -> None:
        self._sender = sender
        self._reject = reject
        self._queued = Queued(_AT_ONCE)

    async def consume(self, records: AsyncIterator[Consumed]) -> None:
        """Takes commands as they come."""
        await self._queued.fill(records)

    async def work(self) -> None:
        """Emits what was taken, for ever."""
        while True:
            commands = await self._queued.take(_AT_ONCE)
            chains: dict[str, list[Consumed]] = {}
            for consumed in commands:
                command = cast("Command", consumed.record)
                chains.setdefault(command.batch_id, []).append(consumed)
            await asyncio.gather(*(self._emit(chain) for chain in chains.values()))

    async def _emit(self, chain: list[Consumed]) -> None:
        # One after the other: a cancel that overtakes its create would be lost.
        for consumed in chain:
            command = cast("Command", consumed.record)
            wrong = _what_is_wrong(consumed, command)
            if wrong is not None:
                await self._reject(consumed, wrong)
                continue
            if not consumed.live:
                return
            await self._sender.send(BATCH_EVENT, command.batch_id, command)
            reach("controller.command_sent")
            consumed.ack()


def _what_is_wrong(consumed: Consumed, command: Command) -> str | None:
    if not _BATCH_ID.fullmatch(command.batch_id):
        return "the batch id is not one of ours"
    if consumed.event.message.key != command.batch_id.encode():
        return "the record's key is not its batch id"
    if isinstance(command, BatchChange) and not allowed(command.priority or 0):
        return f"the priority is not between {MIN_PRIORITY} and {MAX_PRIORITY}"
    return None
