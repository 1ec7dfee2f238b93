"""Waiting for a condition with a deadline, instead of sleeping for a guess."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")
_POLL_S = 0.02


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
    deadline = time.monotonic() + within_s
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
            raise AssertionError(f"not within {within_s} s: {what or condition}") from cause
        await asyncio.sleep(_POLL_S)


def eventually_sync(condition: Callable[[], T], within_s: float = 10.0, what: str = "") -> T:
    """`eventually` for tests without an event loop."""
    deadline = time.monotonic() + within_s
    while True:
        value, cause = None, None
        try:
            value = condition()
        except AssertionError as error:
            cause = error
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s: {what or condition}") from cause
        time.sleep(_POLL_S)
