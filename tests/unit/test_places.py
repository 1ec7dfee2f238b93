"""A place is free again however what had it ends, and is given back once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from streams.places import Places
from tests.support.waiting import eventually


class _Door:
    """Places for names; each runs until it is let go."""

    def __init__(self) -> None:
        self.broken: list[BaseException] = []
        self.places = Places(self._run, self._freed, self.broken.append)
        self.freed = 0
        self.begun: list[str] = []
        self._let_go: dict[str, asyncio.Future[None]] = {}

    async def _run(self, name: str) -> None:
        self.begun.append(name)
        self._let_go[name] = asyncio.get_running_loop().create_future()
        await self._let_go[name]

    def _freed(self) -> None:
        self.freed += 1

    async def begin(self, *names: str) -> None:
        """These run."""
        for name in names:
            self.places.start(name)
        await eventually(lambda: self.begun == list(names))

    async def end(self, name: str, error: Exception | None = None) -> None:
        """It ends by itself."""
        before = self.freed
        if error is None:
            self._let_go[name].set_result(None)
        else:
            self._let_go[name].set_exception(error)
        await eventually(lambda: self.freed > before)

    async def left(self, names: Iterable[str], freed: int) -> None:
        """Nothing but these runs, and so many places were given back."""
        await eventually(lambda: len(self.places) == len(list(names)))
        await asyncio.sleep(0)
        assert self.freed == freed
        assert sorted(self.places.cut_all(lambda _name: True)) == sorted(names)


async def test_what_ends_gives_its_place_back() -> None:
    door = _Door()
    await door.begin("a", "b")
    await door.end("a")
    await door.left("b", freed=1)


async def test_what_breaks_gives_its_place_back_and_is_heard() -> None:
    door, bug = _Door(), KeyError()
    await door.begin("a")
    await door.end("a", bug)
    await door.left("", freed=1)
    assert door.broken == [bug]


async def test_what_is_cut_gives_its_place_back_once() -> None:
    door = _Door()
    await door.begin("a", "b")
    assert door.places.cut("a")
    assert door.places.cut("a")
    await door.left("b", freed=1)


async def test_what_is_cut_before_its_first_step_gives_its_place_back_once() -> None:
    door = _Door()
    door.places.start("a")
    assert door.places.cut("a")
    await door.left("", freed=1)
    assert door.begun == []


async def test_what_has_ended_can_not_be_cut() -> None:
    door = _Door()
    await door.begin("a")
    await door.end("a")
    assert not door.places.cut("a")
    assert door.places.cut_all(lambda _name: True) == []


async def test_what_took_the_place_of_one_that_was_cut_keeps_it() -> None:
    """A line whose call was cut runs again under its own name, perhaps at once."""
    started_again = 0

    def again() -> None:
        nonlocal started_again
        started_again += 1
        if started_again == 1:
            places.start("a")

    async def run(_name: str) -> None:
        await asyncio.sleep(3600)

    places = Places(run, again, lambda _error: None)
    places.start("a")
    await asyncio.sleep(0)
    places.cut("a")
    await eventually(lambda: started_again == 1)
    await asyncio.sleep(0)
    assert (len(places), started_again) == (1, 1)
    await places.drain(0.0)


async def test_a_drain_waits_and_then_cuts() -> None:
    door = _Door()
    await door.begin("a")
    draining = asyncio.create_task(door.places.drain(3600.0))
    await asyncio.sleep(0)
    assert not draining.done()
    await door.end("a")
    await draining
    door.places.start("b")
    await door.places.drain(0.0)
    await door.left("", freed=2)
