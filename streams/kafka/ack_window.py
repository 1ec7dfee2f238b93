"""Acks in offset order per partition, whatever order the work finishes in.

The number of slots bounds what is read but not acked: `admit` waits for a free one, and that
is how a role that is busy stops taking more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from schemas.topics import Topic


class Ackable(Protocol):
    """What a window holds: a consumed record."""

    @property
    def topic(self) -> Topic: ...

    @property
    def partition(self) -> int: ...

    def ack(self) -> None: ...


A = TypeVar("A", bound=Ackable)


@dataclass(slots=True, eq=False)
class Slot(Generic[A]):
    """One admitted record. live: False once its partition was revoked."""

    item: A
    done: bool = False
    live: bool = True


class AckWindow(Generic[A]):
    """Holds at most `limit` records that were admitted and not acked."""

    def __init__(self, limit: int) -> None:
        self._slots: dict[tuple[str, int], deque[Slot[A]]] = {}
        self._free = asyncio.Semaphore(limit)
        self._held = 0

    @property
    def held(self) -> int:
        """Records admitted and not acked."""
        return self._held

    async def admit(self, item: A) -> Slot[A]:
        """A slot for `item`, once one is free. Records of a partition come in offset order.

        The item's partition may have been revoked while this waited. Check its `live` afterwards,
        and if it is not, finish the slot at once: it would stay in the way of what comes after.
        """
        await self._free.acquire()
        self._held += 1
        slot = Slot(item)
        self._slots.setdefault(_place(item), deque()).append(slot)
        return slot

    def finish(self, slot: Slot[A]) -> None:
        """Marks a slot's work as done and acks what is now the finished front. Idempotent."""
        slot.done = True
        if not slot.live:
            return
        queue = self._slots.get(_place(slot.item))
        while queue and queue[0].done:
            queue.popleft().item.ack()
            self._release()

    def drop(self, revoked: Mapping[str, Collection[int]]) -> None:
        """Forgets the slots of revoked partitions (Topic.name to partitions), without acks."""
        for topic, partitions in revoked.items():
            for partition in partitions:
                for slot in self._slots.pop((topic, partition), ()):
                    slot.live = False
                    self._release()

    def _release(self) -> None:
        self._held -= 1
        self._free.release()


def _place(item: Ackable) -> tuple[str, int]:
    return item.topic.name, item.partition
