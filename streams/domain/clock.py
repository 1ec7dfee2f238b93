"""Time, injected: rules and shells take a Clock, tests move one by hand."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

DAY_MS = 86_400_000


def day_of(ms: int) -> int:
    """The UTC day of a time in Unix milliseconds, counted from 1970."""
    return ms // DAY_MS


class Clock(Protocol):
    """Where a component gets the time from."""

    def now_ms(self) -> int:
        """Wall clock, Unix milliseconds; may jump."""
        ...

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary origin; never goes back."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()


@dataclass
class ManualClock:
    """A clock that only moves when told to."""

    ms: int = 1_700_000_000_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic_s(self) -> float:
        return self.ms / 1000

    def advance(self, seconds: float) -> None:
        """Moves the clock on."""
        self.ms += round(seconds * 1000)
