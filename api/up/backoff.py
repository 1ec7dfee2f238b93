"""When a process that died is started again, and when its deaths are worth showing."""

from __future__ import annotations

from dataclasses import dataclass, field

#: The first restart is at once: most deaths are single, and work waits.
FIRST_DELAY_S = 0.0
SECOND_DELAY_S = 0.5
LONGEST_DELAY_S = 15.0
#: A process that has lived this long is healthy again: its earlier deaths are forgotten.
HEALTHY_AFTER_S = 30.0
#: From this many deaths in a row on, the last lines of the log are shown.
SHOW_LOG_FROM = 3


@dataclass(slots=True)
class RestartPolicy:
    """Counts deaths in a row; `now` is any monotonic time in seconds."""

    deaths: int = 0
    _ready_since: float | None = field(default=None)

    def became_ready(self, now: float) -> None:
        """The process said that it is ready."""
        self._ready_since = now

    def died(self, now: float) -> float:
        """The process ended unasked: how long to wait before the next start, in seconds."""
        if self._ready_since is not None and now - self._ready_since >= HEALTHY_AFTER_S:
            self.deaths = 0
        self._ready_since = None
        self.deaths += 1
        if self.deaths == 1:
            return FIRST_DELAY_S
        # The exponent is bounded too: a process may die for weeks.
        return min(LONGEST_DELAY_S, SECOND_DELAY_S * float(1 << min(self.deaths - 2, 16)))

    @property
    def worth_showing(self) -> bool:
        """Whether it has died so often in a row that a person should see why."""
        return self.deaths >= SHOW_LOG_FROM
