"""How long prompts and answers are, in tokens: seeded, and part of the engine's calibration."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LogNormal:
    """A skewed length: half of the draws are below `median`; none is outside of low..high."""

    median: float
    sigma: float
    low: int
    high: int

    def draw(self, random_: random.Random) -> int:
        """One length in tokens."""
        drawn = random_.lognormvariate(math.log(self.median), self.sigma)
        return max(self.low, min(self.high, round(drawn)))


@dataclass(frozen=True, slots=True)
class Lengths:
    """The lengths of one kind of request."""

    prompt: LogNormal
    output: LogNormal

    def draw(self, random_: random.Random) -> tuple[int, int]:
        """One request, as (prompt tokens, output tokens)."""
        return self.prompt.draw(random_), self.output.draw(random_)


#: Chat: a question with some history, a few paragraphs as the answer.
REALTIME = Lengths(LogNormal(300, 0.5, 20, 2000), LogNormal(200, 0.6, 8, 1000))
#: Batch lines: shorter prompts, and answers as long.
BATCH = Lengths(LogNormal(200, 0.6, 20, 4000), LogNormal(200, 0.6, 8, 1200))
#: Batch calls in flight at which a run "without care" shows the naive figures.
NAIVE_CALLS = 150
