"""Trying again while the object store is in trouble: how often, how long, and saying so."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from schemas.metrics import STORE_RETRIES, Metrics
from streams.domain.clock import Clock
from streams.ports.object_store import (
    ObjectNotFoundError,
    ObjectStoreError,
    ObjectStoreFullError,
)

log = structlog.get_logger(__name__)
T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]

_FIRST_PAUSE_S = 0.2
#: A full disk that was emptied, or a bucket that is back, is noticed within this time.
_LONGEST_PAUSE_S = 30.0


class Patience:
    """One component's way of waiting: clock and sleep are injected, so that tests need no time."""

    def __init__(self, clock: Clock, metrics: Metrics, sleep: Sleep = asyncio.sleep) -> None:
        self.clock = clock
        self.sleep = sleep
        self._retries = metrics.counter(STORE_RETRIES)

    def trouble(self, budget_s: float | None, **context: object) -> Trouble:
        """A run of failures that may last `budget_s` seconds; None is for ever."""
        return Trouble(self, budget_s, context)

    async def keep_trying(
        self, call: Callable[[], Awaitable[T]], budget_s: float | None, **context: object
    ) -> T:
        """The call's result, once it succeeds. Raises what it raised last, when time is up.

        An object that isn't there is not waited for: stores are consistent.
        """
        trouble = self.trouble(budget_s, **context)
        while True:
            try:
                return await call()
            except ObjectNotFoundError:
                raise
            except ObjectStoreError as error:
                await trouble.wait_after(error)

    def count(self, error: ObjectStoreError) -> None:
        """Counts one failure that will be tried again."""
        reason = "full" if isinstance(error, ObjectStoreFullError) else "failed"
        self._retries.labels(reason).inc()


class Trouble:
    """Failures in a row. `over()` is for callers that make progress between them."""

    def __init__(
        self, patience: Patience, budget_s: float | None, context: dict[str, object]
    ) -> None:
        self._patience = patience
        self._budget_s = budget_s
        self._context = context
        self._began_s: float | None = None
        self._pause_s = _FIRST_PAUSE_S

    def over(self) -> None:
        """Something succeeded: the next failure begins a new run."""
        self._began_s = None
        self._pause_s = _FIRST_PAUSE_S

    async def wait_after(self, error: ObjectStoreError) -> None:
        """Waits a while, each time longer. Raises `error` if that would exceed the budget."""
        now = self._patience.clock.monotonic_s()
        if self._began_s is None:
            self._began_s = now
        pause = self._pause_s * random.uniform(0.5, 1.0)
        if self._budget_s is not None and now + pause - self._began_s > self._budget_s:
            raise error
        self._pause_s = min(_LONGEST_PAUSE_S, self._pause_s * 2)
        self._patience.count(error)
        log.warning(
            "The object store failed; trying again.",
            action="object_store_retry",
            error=str(error),
            pause_s=round(pause, 2),
            **self._context,
        )
        await self._patience.sleep(pause)
