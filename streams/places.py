"""Places for tasks: what runs has one, and gives it back however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from streams.background import Broken

T = TypeVar("T")


class Places(Generic[T]):
    """What runs now, each in a task of its own. How many may is for its owner to say."""

    def __init__(
        self, run: Callable[[T], Awaitable[None]], freed: Callable[[], None], broken: Broken
    ) -> None:
        """run: runs one. freed: a place is free again. broken: hears of what `run` raises, a bug.

        A place is free before the task's last step is over, so whoever `run` woke sees it free.
        """
        self._run = run
        self._freed = freed
        self._broken = broken
        self._tasks: dict[T, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, one: T) -> None:
        """Gives it a place, and runs it."""
        self._tasks[one] = asyncio.create_task(self._work(one))

    def cut(self, one: T) -> bool:
        """Cuts it off; whether it had not ended yet."""
        task = self._tasks.get(one)
        if task is None or not task.cancel():
            return False
        # A task that is cut before its first step never enters its body, nor that's `finally`.
        # Only here, because each line would pay for it.
        task.add_done_callback(lambda ended: self._leave(one, ended))
        return True

    def cut_all(self, unwanted: Callable[[T], bool]) -> list[T]:
        """The same for all of these; those that had not ended yet."""
        return [one for one in list(self._tasks) if unwanted(one) and self.cut(one)]

    async def drain(self, budget_s: float) -> None:
        """Gives those that run now so long, then cuts them. None may be started any more."""
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=budget_s)
        late = list(self._tasks.values())
        self.cut_all(lambda _one: True)
        await asyncio.gather(*late, return_exceptions=True)

    async def _work(self, one: T) -> None:
        try:
            await self._run(one)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not pass unheard
            self._broken(error)
        finally:
            del self._tasks[one]
            self._freed()

    def _leave(self, one: T, ended: asyncio.Task[None]) -> None:
        if self._tasks.get(one) is ended:
            del self._tasks[one]
            self._freed()
