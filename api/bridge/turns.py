"""Whose heavy work is done now: some at once, of one tenant fewer, and what fails apart."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Turns, given in the order in which they are asked for."""

    def __init__(self, at_once: int, of_a_tenant: int) -> None:
        """at_once: all tenants' together; so many more for what has failed before.

        of_a_tenant: its partitions are as many as all turns, and its work may take long.
        """
        self._sound = asyncio.Semaphore(at_once)
        # What fails may take all the time it is given before it does, at every try.
        self._failing = asyncio.Semaphore(at_once)
        self._tenants: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(of_a_tenant)
        )

    @asynccontextmanager
    async def turn(self, tenant: str, *, failing: bool = False) -> AsyncIterator[None]:
        """Waits for a turn, and keeps it. failing: whether this failed when it was last tried."""
        async with self._tenants[tenant], self._failing if failing else self._sound:
            yield
