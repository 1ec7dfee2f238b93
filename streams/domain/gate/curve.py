"""How an engine slows down as more runs in it, learnt from what real-time calls see.

    gap between tokens  =  step(R)      =  a + b·R        R: sequences that run, of both lanes
    time to first token =  predicted(R) =  d + m·step(R)

Two straight lines, each fitted by least squares whose memory fades, so that an engine that was
changed is learnt anew. `a` and `b` hold what prefills add on the average; what they add now and
then is in the spread of real calls around the line, which the plan keeps (gate_plan).
"""

from __future__ import annotations

from dataclasses import dataclass

#: Weight of what is known by heart, in samples: soon outvoted.
_PRIOR_WEIGHT = 5.0


class FadingLine:
    """y = intercept + slope·x by least squares; both stay at or above zero.

    half_life: weight of newer samples after which an old one counts half.
    reach: how far x must go for y to double, as believed at first; 0 for y in proportion to x.
    """

    def __init__(self, half_life: float, reach: float) -> None:
        self._keep = 0.5 ** (1 / half_life)
        self._reach = reach
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    @property
    def weight(self) -> float:
        """How much has been seen, fading."""
        return self._weight

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever added."""
        return self._weight == 0

    def add(self, x: float, y: float, weight: float = 1.0) -> None:
        """One observation."""
        keep = self._keep**weight
        self._weight = keep * self._weight + weight
        self._x = keep * self._x + weight * x
        self._y = keep * self._y + weight * y
        self._xx = keep * self._xx + weight * x * x
        self._xy = keep * self._xy + weight * x * y

    def fit(self) -> tuple[float, float]:
        """(intercept, slope); (0, 0) while empty."""
        if self.is_empty:
            return 0.0, 0.0
        mean_x, mean_y = self._x / self._weight, self._y / self._weight
        spread = self._xx / self._weight - mean_x * mean_x
        together = self._xy / self._weight - mean_x * mean_y
        # What is believed at first has the weight of a few samples.
        share = _PRIOR_WEIGHT / (self._weight + _PRIOR_WEIGHT)
        prior_spread = ((self._reach + mean_x) / 4) ** 2
        slope_then = mean_y / (self._reach + mean_x)
        top = together + share * prior_spread * slope_then
        slope = top / (spread + share * prior_spread)
        slope = min(max(slope, 0.0), mean_y / mean_x if mean_x > 0 else slope_then)
        return mean_y - slope * mean_x, slope


@dataclass(frozen=True, slots=True)
class Curve:
    """What is believed now. Seconds and sequences."""

    a: float
    b: float
    d: float
    m: float

    def step_s(self, running: float) -> float:
        """A step's time with so many sequences."""
        return self.a + self.b * running

    def ttft_s(self, running: float) -> float:
        """The time to first token that a call meets on the average."""
        return self.d + self.m * self.step_s(running)

    def running_at(self, ttft_s: float) -> float:
        """The inverse of ttft_s: at how many sequences the first token takes so long."""
        per_sequence = self.m * self.b
        if per_sequence <= 0:
            return float("inf") if ttft_s >= self.ttft_s(0) else 0.0
        return (ttft_s - self.ttft_s(0)) / per_sequence

    def alone(self, realtime: float, batch: float) -> float:
        """Real-time calls that would be in flight if there were no batch.

        With shorter steps each call ends sooner: in flight = rate · tokens · step time.
        """
        slope = self.b * batch
        return realtime * self.a / (self.a + slope) if self.a + slope > 0 else realtime


class CurveLearner:
    """Keeps the curve up to date."""

    def __init__(self) -> None:
        # The step line sees some twenty records a second, the other one each call.
        self._steps = FadingLine(half_life=5_000, reach=64)
        self._firsts = FadingLine(half_life=3_000, reach=0.0)

    @property
    def knows_firsts(self) -> bool:
        """Whether enough first tokens were seen to predict the next."""
        return self._firsts.weight >= 30 and not self._steps.is_empty

    def gaps(self, running: float, mean_gap_s: float) -> None:
        """Tokens came so far apart while so many sequences ran."""
        self._steps.add(running, mean_gap_s)

    def first(self, running: float, ttft_s: float) -> None:
        """A call met so many sequences and got its first token after so long."""
        a, b = self._steps.fit()
        if a + b * running > 0:
            self._firsts.add(a + b * running, ttft_s)

    def curve(self) -> Curve:
        """What is believed now."""
        a, b = self._steps.fit()
        d, m = self._firsts.fit()
        return Curve(a, b, d, m)
