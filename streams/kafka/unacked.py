"""How far one partition may be committed: never past a record that was read but not finished.

Faust 0.15.3 commits past unfinished records when acks come out of order, and takes holes in the
offsets for acks. Here the records that were handed out are remembered in order; the safe offset
is one past the longest finished run at their front, whatever is missing in between.
"""

from __future__ import annotations

from collections import deque


class Unacked:
    """The records of one partition that were handed out in one assignment."""

    __slots__ = ("_done", "_order", "committed", "generation", "next", "safe")

    def __init__(self, generation: int, start: int, committed: int | None = None) -> None:
        #: The group generation in which the partition was assigned.
        self.generation = generation
        #: The offset that should be handed out next.
        self.next = start
        #: What may be committed; None while nothing was finished.
        self.safe: int | None = None
        #: What was committed last; None if nothing ever was.
        self.committed = committed
        self._order: deque[int] = deque()
        self._done: set[int] = set()

    def __len__(self) -> int:
        return len(self._order)

    def hand_out(self, offset: int) -> None:
        """Notes that the record at `offset` was handed out. Offsets only grow."""
        self._order.append(offset)
        self.next = offset + 1

    def ack(self, offset: int) -> None:
        """Notes that a record that was handed out is finished. Each is acked once."""
        order, done = self._order, self._done
        if not order or offset != order[0]:
            done.add(offset)
            return
        self.safe = order.popleft() + 1
        while order and order[0] in done:
            offset = order.popleft()
            done.remove(offset)
            self.safe = offset + 1

    def due(self) -> int | None:
        """The offset to commit now; None when there is nothing new."""
        if self.safe is None or self.safe == self.committed:
            return None
        return self.safe
