"""What an engine has done since it started, as its /metrics page counts it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from streams.simulator.engine import Step

#: Bounds of vLLM's own histograms, seconds.
_GAP_BOUNDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)
_FIRST_BOUNDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0)


class Distribution:
    """A histogram that takes many equal samples at once, as a step gives them."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    @property
    def count(self) -> int:
        """Samples taken."""
        return sum(self._counts)

    def add(self, value: float, times: int = 1) -> None:
        """Takes so many samples of one value."""
        self._counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, samples up to it), as Prometheus wants them."""
        found, total = [], 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            found.append(("+Inf" if bound == float("inf") else str(bound), float(total)))
        return found


@dataclass(slots=True)
class EngineCounts:
    """Totals of one engine. Times are the engine's own, which may run faster than the clock."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    finished: int = 0
    preemptions: int = 0
    gaps: Distribution = field(default_factory=lambda: Distribution(_GAP_BOUNDS))
    firsts: Distribution = field(default_factory=lambda: Distribution(_FIRST_BOUNDS))

    def add(self, step: Step) -> None:
        """Counts a step that has ended."""
        self.generated_tokens += sum(step.made)
        self.finished += len(step.finished)
        self.preemptions += sum(request.preemptions for request in step.finished)
        gaps = sum(step.gaps)
        if gaps:
            self.gaps.add(step.end_s - step.start_s, gaps)
        for request in step.first:
            if request.first_at_s is not None:
                self.firsts.add(request.first_at_s - request.submitted_at_s)
