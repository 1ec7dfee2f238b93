"""How an engine slows down as more runs in it, learnt from what real-time calls see.

    gap between tokens  =  step(R, r)      =  a + b·R + f·r     R: sequences that run, of both lanes
    time to first token =  predicted(R, r) =  d + m·step + q·r  r: those of them that are real-time

Two planes, each fitted by least squares whose memory fades, so that an engine that was changed is
learnt anew. `a` and `b` hold what prefills add on the average; what they add now and then is in the
spread of real calls around the plane, which the plan keeps (plan.py). `f` and `q` are small (the
lanes' prompts are not equally long), and needed: most of the time batch is there where real-time
calls are few, so without them what real-time calls do would be taken for what batch does not do,
and what would be alone, far from all that is seen, would come out wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Weight of what is known by heart, in samples: soon outvoted.
_PRIOR_WEIGHT = 5.0


class FadingPlane:
    """y = intercept + slope·x + lift·z by least squares; all three stay at or above zero.

    half_life: weight of newer samples after which an old one counts half.
    reach: how far x must go for y to double, as believed at first; 0 for y in proportion to x.
    That z makes a difference is not believed at first.
    """

    def __init__(self, half_life: float, reach: float) -> None:
        self._keep = 0.5 ** (1 / half_life)
        self._reach = reach
        self._sums = [0.0] * 9

    @property
    def weight(self) -> float:
        """How much has been seen, fading."""
        return self._sums[0]

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever added."""
        return self._sums[0] == 0

    def add(self, x: float, z: float, y: float) -> None:
        """One observation."""
        new = (1.0, x, z, y, x * x, x * z, z * z, x * y, z * y)
        self._sums = [self._keep * old + one for old, one in zip(self._sums, new, strict=True)]

    def fit(self) -> tuple[float, float, float]:
        """(intercept, slope, lift); zeros while empty."""
        if self.is_empty:
            return 0.0, 0.0, 0.0
        weight = self._sums[0]
        x, z, y, xx, xz, zz, xy, zy = (total / weight for total in self._sums[1:])
        # What is believed at first has the weight of a few samples.
        share = _PRIOR_WEIGHT / (weight + _PRIOR_WEIGHT)
        prior_x, prior_z = share * ((self._reach + x) / 4) ** 2, share * z * z
        slope_then = y / (self._reach + x) if self._reach + x > 0 else 0.0
        var_x, var_z, cov = xx - x * x + prior_x, zz - z * z + prior_z, xz - x * z
        cov_x, cov_z = xy - x * y + prior_x * slope_then, zy - z * y
        independent = var_x * var_z - cov * cov
        lift = 0.0
        if z > 0 and independent > 1e-9 * var_x * var_z:
            lift = min(max(0.0, (cov_z * var_x - cov_x * cov) / independent), y / z)
        slope = max(0.0, (cov_x - lift * cov) / var_x) if var_x > 0 else slope_then
        slope = min(slope, (y - lift * z) / x) if x > 0 else slope_then
        return y - slope * x - lift * z, slope, lift


@dataclass(frozen=True, slots=True)
class Curve:
    """What is believed now. Seconds and sequences.

    running: of both lanes. realtime: those of them that are real-time calls.
    """

    a: float
    b: float
    f: float
    d: float
    m: float
    q: float

    def step_s(self, running: float, realtime: float) -> float:
        """A step's time with so many sequences."""
        return self.a + self.b * running + self.f * realtime

    def ttft_s(self, running: float, realtime: float) -> float:
        """The time to first token that a call meets on the average."""
        return self.d + self.m * self.step_s(running, realtime) + self.q * realtime

    def running_at(self, ttft_s: float, realtime: float) -> float:
        """The inverse of ttft_s: at how many sequences the first token takes so long."""
        per_sequence = self.m * self.b
        if per_sequence <= 0:
            return float("inf") if ttft_s >= self.ttft_s(0, realtime) else 0.0
        return (ttft_s - self.ttft_s(0, realtime)) / per_sequence


class CurveLearner:
    """Keeps the curve up to date."""

    def __init__(self) -> None:
        # The steps' plane sees some twenty records a second, the other one each call.
        self._steps = FadingPlane(half_life=5_000, reach=64)
        self._firsts = FadingPlane(half_life=3_000, reach=0.0)
        self._curve: Curve | None = None

    @property
    def knows_firsts(self) -> bool:
        """Whether enough first tokens were seen to predict the next."""
        return self._firsts.weight >= 30 and not self._steps.is_empty

    def gaps(self, running: float, realtime: float, mean_gap_s: float) -> None:
        """Tokens came so far apart while so many sequences ran."""
        self._steps.add(running, realtime, mean_gap_s)
        self._curve = None

    def first(self, running: float, realtime: float, ttft_s: float) -> None:
        """A call met so many sequences, until its first token came after so long."""
        step_s = self.curve().step_s(running, realtime)
        if step_s > 0:
            self._firsts.add(step_s, realtime, ttft_s)
            self._curve = None

    def curve(self) -> Curve:
        """What is believed now."""
        if self._curve is None:
            self._curve = Curve(*self._steps.fit(), *self._firsts.fit())
        return self._curve
