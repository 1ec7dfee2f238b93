"""Waiting for a condition with a deadline, instead of sleeping for a guess.

A deadline ends what would never happen; it is no stop-watch. Tests say how long something takes at
most on a machine that is alone, and it gets several times that: others may need the machine, too.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")
_POLL_S = 0.02
_PATIENCE = 6.0


def deadline_in(within_s: float) -> float:
    """When, on the monotonic clock, to give up on what takes `within_s` on a machine alone."""
    return time.monotonic() + _PATIENCE * within_s


@overload
async def eventually(
    condition: Callable[[], Awaitable[T]], within_s: float = 10.0, what: str = ""
) -> T: ...
@overload
async def eventually(condition: Callable[[], T], within_s: float = 10.0, what: str = "") -> T: ...
async def eventually(condition: Callable[[], Any], within_s: float = 10.0, what: str = "") -> Any:
    """The condition's first true value; it may be a function or a coroutine function.

    An AssertionError inside counts as not yet. Raises AssertionError when the time is over.
    """
    deadline = deadline_in(within_s)
    while True:
        value, cause = None, None
        try:
            result = condition()
            value = await result if inspect.isawaitable(result) else result
        except AssertionError as error:
            cause = error
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(
                f"not within {_PATIENCE * within_s:g} s: {what or condition}"
            ) from cause
        await asyncio.sleep(_POLL_S)


def eventually_sync(condition: Callable[[], T], within_s: float = 10.0, what: str = "") -> T:
    """`eventually` for tests without an event loop."""
    deadline = deadline_in(within_s)
    while True:
        value, cause = None, None
        try:
            value = condition()
        except AssertionError as error:
            cause = error
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(
                f"not within {_PATIENCE * within_s:g} s: {what or condition}"
            ) from cause
        time.sleep(_POLL_S)
