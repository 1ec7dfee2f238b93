"""What is done side by side: a lane for each partition that a group has given to this process.

Read anew, a partition is read from its last commit, and what came since comes again: to a lane of
its own, never to one that knows it already.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from streams.kafka.group_reader import Held, TopicPart


class Lane(Protocol):
    """Works by itself on what it is given."""

    def check(self) -> None:
        """Raises what it ended with, which it never should."""
        ...

    async def stop(self) -> None:
        """Ends the work; what was not committed is done by whoever goes on."""
        ...


L = TypeVar("L", bound=Lane)


class Lanes(Generic[L]):
    """The lanes of the partitions that are this process's."""

    def __init__(self, start: Callable[[TopicPart, Held], L | None]) -> None:
        """start: makes a partition's lane; None for one that is nobody's."""
        self._start = start
        self._lanes: dict[TopicPart, tuple[int, L]] = {}

    def __iter__(self) -> Iterator[L]:
        return (lane for _, lane in self._lanes.values())

    def items(self) -> Iterator[tuple[TopicPart, L]]:
        """Each with its partition."""
        return ((part, lane) for part, (_, lane) in self._lanes.items())

    def get(self, part: TopicPart) -> L | None:
        """The partition's lane, if it is this process's."""
        found = self._lanes.get(part)
        return found and found[1]

    def check(self) -> None:
        """Raises what a lane ended with."""
        for lane in self:
            lane.check()

    async def follow(self, held: Mapping[TopicPart, Held]) -> None:
        """These partitions are this process's now, as of its last poll."""
        gone = [
            p for p, (since, _) in self._lanes.items() if p not in held or held[p].since != since
        ]
        await asyncio.gather(*(self._lanes.pop(part)[1].stop() for part in gone))
        for part, now in held.items():
            if part not in self._lanes and (lane := self._start(part, now)) is not None:
                self._lanes[part] = (now.since, lane)

    async def stop(self) -> None:
        """Ends the work of all."""
        await asyncio.gather(*(lane.stop() for lane in self))


class Worker(ABC):
    """A lane that is one task."""

    def __init__(self, name: str) -> None:
        """Begins to work, once what makes it has nothing more to do now."""
        self._working = asyncio.create_task(self._work(), name=name)

    @abstractmethod
    async def _work(self) -> None:
        """Works until it is cancelled."""

    @property
    def ended(self) -> bool:
        """Whether it does nothing any more; check() says why."""
        return self._working.done()

    def check(self) -> None:
        """Raises what it ended with."""
        if self._working.done():
            self._working.result()

    async def stop(self) -> None:
        """Ends the work."""
        self._working.cancel()
        await asyncio.wait([self._working])
