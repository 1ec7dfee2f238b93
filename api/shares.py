"""Shares of heavy work: so much at once in the process, and of a tenant no more than its share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from weakref import WeakValueDictionary

from api.errors import RateLimited, Unavailable


class Place:
    """One place, taken."""

    def __init__(self, total: asyncio.Semaphore) -> None:
        self._total = total
        self._held = False

    async def take(self) -> None:
        """Waits until there is room in the process."""
        await self._total.acquire()
        self._held = True

    def free(self) -> None:
        """Gives it back. Idempotent."""
        if self._held:
            self._held = False
            self._total.release()

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[None]:
        """Others may have it meanwhile; the tenant's share stays used. Waits for it at the end."""
        self.free()
        yield
        await self.take()


class Shares:
    """total: at once in the process. share: at once for one tenant."""

    def __init__(self, total: int, share: int) -> None:
        self._total = asyncio.Semaphore(total)
        self._share = share
        # One for each tenant at work.
        self._shares: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def now(self, tenant: str, what: str) -> AbstractAsyncContextManager[Place]:
        """A place, without waiting. what: names the work. Raises RateLimited, Unavailable."""
        if self._of(tenant).locked():
            raise RateLimited(
                f"You make too many {what} at once: wait for one of your {self._share} to end.",
                code="too_many_at_once",
            )
        if self._total.locked():
            raise Unavailable(f"The server makes too many {what} at once.", code="overloaded")
        return self.wait(tenant)

    @asynccontextmanager
    async def wait(self, tenant: str) -> AsyncIterator[Place]:
        """A place, as soon as there is one for the tenant."""
        # Whoever waits for a place of its own share keeps none from others.
        async with self._of(tenant):
            place = Place(self._total)
            await place.take()
            try:
                yield place
            finally:
                place.free()

    def _of(self, tenant: str) -> asyncio.Semaphore:
        return self._shares.setdefault(tenant, asyncio.Semaphore(self._share))
