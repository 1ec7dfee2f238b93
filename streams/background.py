"""Tasks that nobody awaits: kept from being collected, and heard of when they break."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

Broken = Callable[[BaseException], None]


class Tasks:
    """Starts tasks. `broken` gets the exception of one that ends with one: a bug, always."""

    def __init__(self, broken: Broken) -> None:
        self._broken = broken
        self._running: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` beside the caller."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)

    async def one_done(self, within_s: float) -> None:
        """Waits until some task has ended, but not longer than that."""
        if self._running:
            await asyncio.wait(self._running, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)

    async def stop(self, budget_s: float) -> None:
        """Waits for all for so long, then cancels the others."""
        if self._running:
            await asyncio.wait(self._running, timeout=budget_s)
        late = list(self._running)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broken(error)
