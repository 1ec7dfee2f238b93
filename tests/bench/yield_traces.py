"""Seeded real-time traffic, and the lengths of what is asked, for the yield bench.

A trace is all that the real-time side will do, decided before the run: so every policy meets the
same requests at the same moments.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import NamedTuple

from streams.simulator.engine_lengths import BATCH, REALTIME, Lengths


class Arrival(NamedTuple):
    """One real-time request: when it comes (seconds) and its lengths (tokens)."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


class Trace(NamedTuple):
    """All real-time requests of one run, in order of arrival."""

    name: str
    seed: int
    duration_s: float
    arrivals: tuple[Arrival, ...]


def steady(rps: float, duration_s: float, seed: int) -> Trace:
    """Poisson arrivals at one rate."""
    return _trace("steady", lambda _: rps, rps, duration_s, seed)


def waves(seed: int) -> Trace:
    """15 requests a second for 30 s, 1 for 30 s, and so on for ten minutes."""
    return _trace("waves", lambda t: 15.0 if t % 60 < 30 else 1.0, 15.0, 600, seed)


def diurnal(seed: int) -> Trace:
    """Two days of five minutes each, from 0.5 a second at night to 15 at noon."""

    def rate(t: float) -> float:
        return 0.5 + 14.5 * (1 - math.cos(2 * math.pi * t / 300)) / 2

    return _trace("diurnal", rate, 15.0, 600, seed)


def idle_gaps(seed: int) -> Trace:
    """Half a minute to a minute at 10 a second, then two to four minutes of nothing; half an hour.

    The run begins in a gap.
    """
    random_ = random.Random(f"gaps {seed}")
    busy: list[tuple[float, float]] = []
    at = random_.uniform(120, 240)
    while at < 1800:
        end = at + random_.uniform(30, 60)
        busy.append((at, end))
        at = end + random_.uniform(120, 240)

    def rate(t: float) -> float:
        return 10.0 if any(start <= t < end for start, end in busy) else 0.0

    return _trace("idle gaps", rate, 10.0, 1800, seed)


def step(seed: int) -> Trace:
    """2 requests a second, from the middle on 12."""
    return _trace("step", lambda t: 2.0 if t < 60 else 12.0, 12.0, 120, seed)


def bursts(seed: int) -> Trace:
    """1 a second, and each 20 s for 3 s 25."""
    return _trace("bursts", lambda t: 25.0 if t % 20 < 3 else 1.0, 25.0, 120, seed)


def sawtooth(seed: int) -> Trace:
    """From nothing to 15 a second in 30 s, and again."""
    return _trace("sawtooth", lambda t: t % 30 / 2, 15.0, 120, seed)


def noise(seed: int) -> Trace:
    """A rate between 0 and 15 that is drawn anew each second."""
    rates = [random.Random(f"noise {seed} {second}").uniform(0, 15) for second in range(120)]
    return _trace("noise", lambda t: rates[int(t)], 15.0, 120, seed)


#: Shapes to test stability with.
SHAPES: dict[str, Callable[[int], Trace]] = {
    "step": step,
    "bursts": bursts,
    "sawtooth": sawtooth,
    "noise": noise,
}
TRACES: dict[str, Callable[[int], Trace]] = {
    "waves": waves,
    "idle gaps": idle_gaps,
    "diurnal": diurnal,
}


def _trace(
    name: str, rate: Callable[[float], float], peak: float, duration_s: float, seed: int
) -> Trace:
    """Arrivals of a Poisson process with that rate, by thinning one with the peak rate."""
    times = random.Random(f"times {name} {seed}")
    lengths = random.Random(f"lengths {name} {seed}")
    arrivals: list[Arrival] = []
    at = 0.0
    while True:
        at += times.expovariate(peak)
        if at >= duration_s:
            return Trace(name, seed, duration_s, tuple(arrivals))
        if times.random() * peak < rate(at):
            arrivals.append(Arrival(at, *REALTIME.draw(lengths)))


def batch_lines(seed: int) -> Callable[[], tuple[int, int]]:
    """A supply of batch lines without end, as (prompt tokens, output tokens)."""
    lengths = random.Random(f"batch {seed}")
    kind: Lengths = BATCH
    return lambda: kind.draw(lengths)
