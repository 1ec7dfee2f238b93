"""Whose turn it is: of several keys the one that has been served least, measured in time.

Keys whose lines cost the same simply alternate. A key whose lines take a hundred times longer
gets a hundredth of the turns, so that it has no more than its share of the processes.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
#: Keys without anything waiting that are remembered at least, so that leaving and coming back
#: wins nothing.
_REMEMBERED = 1000


class Turns(Generic[T]):
    """Items that wait, by key. `wanted` tells whether an item has not been withdrawn."""

    def __init__(self, wanted: Callable[[T], bool]) -> None:
        self._wanted = wanted
        self._waiting: dict[str, deque[T]] = {}
        #: Seconds of service so far; a new key starts where the others are.
        self._served: dict[str, float] = {}
        self._floor = 0.0
        #: One entry for each key with something waiting: service, order of asking, key.
        self._heap: list[tuple[float, int, str]] = []
        self._asked = 0

    def add(self, key: str, item: T) -> None:
        """Lets it wait behind the others of its key."""
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting.append(item)
            return
        self._waiting[key] = deque((item,))
        self._served[key] = max(self._served.get(key, 0.0), self._floor)
        self._push(key)

    def pop(self) -> T | None:
        """Takes the next item out; None if nothing wanted waits."""
        while self._heap:
            served, _, key = heapq.heappop(self._heap)
            if served < self._served[key]:
                self._push(key)
                continue
            item = self._first(key)
            if item is not None:
                self._floor = max(self._floor, served)
                self._prune()
                return item
        return None

    def all(self) -> list[T]:
        """Takes everything out."""
        items = [item for waiting in self._waiting.values() for item in waiting]
        self._waiting.clear()
        self._heap.clear()
        return items

    def charge(self, key: str, seconds: float) -> None:
        """This key was served for so long."""
        self._served[key] = self._served.get(key, self._floor) + seconds

    def _push(self, key: str) -> None:
        self._asked += 1
        heapq.heappush(self._heap, (self._served[key], self._asked, key))

    def _first(self, key: str) -> T | None:
        """The key's first wanted item, and the key back in line if it has more."""
        waiting = self._waiting[key]
        item: T | None = None
        while waiting and item is None:
            candidate = waiting.popleft()
            item = candidate if self._wanted(candidate) else None
        if waiting:
            self._push(key)
        else:
            del self._waiting[key]
        return item

    def _prune(self) -> None:
        """Forgets keys that are not owed anything."""
        if len(self._served) <= _REMEMBERED + 2 * len(self._waiting):
            return
        self._served = {
            key: served
            for key, served in self._served.items()
            if served > self._floor or key in self._waiting
        }
