"""Whether this process may still act for its partitions.

A process that was paused or cut off may have been thrown out of its group while another took
over. The broker forgets a member after the session time-out, so a member whose last heartbeat
was answered within two thirds of it still owns its partitions for a while; after that it stops
before it writes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from streams.kafka.errors import Fenced

#: The share of the session time-out after which a silent member no longer trusts itself.
TRUSTED_SHARE = 2 / 3
_POLL_S = 0.05


class Fence:
    """Judges by the age of the last answered heartbeat. Fed from the consumer's thread."""

    def __init__(self, session_timeout_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._trusted_s = session_timeout_s * TRUSTED_SHARE
        self._now = now
        self._heard_at: float | None = None

    def heard(self, sent_at: float) -> None:
        """The broker answered a heartbeat, or a join, that was sent at this monotonic time."""
        self._heard_at = sent_at

    def lost(self) -> None:
        """The broker no longer knows this member."""
        self._heard_at = None

    @property
    def age_s(self) -> float:
        """Seconds since the last answered heartbeat was sent; infinite for a non-member."""
        return float("inf") if self._heard_at is None else self._now() - self._heard_at

    def check(self) -> None:
        """Raises Fenced if the partitions may be another's by now. Call before each write."""
        if self._heard_at is None:
            raise Fenced("The group does not know this process; another may have taken over.")
        if self.age_s > self._trusted_s:
            raise Fenced(
                f"No heartbeat was answered for {self.age_s:.1f} s; another process may have "
                "taken over."
            )

    async def wait(self) -> None:
        """Like check(), but waits out a silence of the broker's as long as we are a member.

        A heartbeat that is answered after a silence proves that nobody took over meanwhile.
        Raises Fenced once the broker no longer knows this member.
        """
        while self.age_s > self._trusted_s:
            if self._heard_at is None:
                self.check()
            await asyncio.sleep(_POLL_S)
