"""How many sequences may run in each situation, so that real-time calls stay within the target.

The promise is about the slowest calls: P99 of the time to first token, at most `target` over what
it would be without batch. So of a hundred calls one may be slower than that line, and the
plan spends these where they buy most: long silences cost few calls and yield the most, a
busy minute costs many. Per situation (how many real-time calls are in flight, or for how long
there was none) it chooses the number of sequences R that maximises

    seconds spent there · batch tokens a second at R  -  price · calls made too slow at R

and raises the one price until the calls made too slow, over all situations, are within their share.

The calls of the last minutes are the statistics, as they came: each tells how it stood to the
curve (a long prompt, an unlucky moment), what it would have been alone, and so with how many
sequences it would still have been in time.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from streams.domain.gate.curve import Curve

#: The window of the statistics: older minutes are forgotten, also as the baseline.
EPOCH_S = 10.0
_EPOCHS = 90
#: How far back that is.
WINDOW_S = EPOCH_S * _EPOCHS
#: Calls of an epoch that are kept; where there are more, each stands for several.
_KEPT = 96
#: Situations: silence of at least so many seconds ...
_SILENCES = (0.0, 0.5, 2.0, 8.0, 30.0)
#: ... or real-time calls in flight, at least.
_LEVELS = (1, 2, 3, 5, 7, 10, 14, 19, 26, 36, 50, 70, 100, 140, 200, 280, 400)
#: Situations of long silence.
_LONG_SILENCES = 2
SITUATIONS = len(_SILENCES) + len(_LEVELS)
#: A situation with few calls of its own borrows the spread of all calls, as so many of its own.
_BORROWED = 10.0
_BORROWED_IN_SILENCE = 2.0
#: By how much a P99 of one call would not be known, and how that grows with the target; with the
#: root of the calls' number it is known better, but never for certain, as what would be alone is
#: inferred and not seen. The line is drawn so much lower.
_DOUBT = 0.4
_DOUBT_LEAST = 0.01
_DOUBT_GROWS = 1.6
#: Standard deviations by which more calls may be slow by themselves than were counted.
_COUNT_DOUBT = 2.0
#: A part of what batch may add is left to it whatever the doubt: with nothing nothing is learnt.
_FREE_LEAST = 0.25
#: How luck grows with the expected time: 0 not at all, 1 in proportion.
_LUCK_GROWS = 0.6
#: Long steps that a call meets when batch is aborted for it: the rest of the one that runs, and now
#: and then the one that was planned before the abort was heard.
_STEPS_UNTIL_ABORT = 1.0
#: Before the first call, one is expected after this silence.
_FIRST_AFTER_S = 60.0
#: Calls that meet what ran in a silence, where it can't be aborted and takes seconds to leave.
_WHILE_DRAINING = 20.0
#: A situation that was met for less time has no say of its own.
_KNOWN_AFTER_S = 3.0
_UNKNOWN = 4


def situation(realtime: int, silent_s: float) -> int:
    """The number of the situation, from the longest silence (0) to the busiest."""
    if realtime <= 0:
        found = max(i for i, least in enumerate(_SILENCES) if silent_s >= least or i == 0)
        return len(_SILENCES) - 1 - found
    return len(_SILENCES) + bisect_left(_LEVELS, realtime + 1) - 1


@dataclass(slots=True)
class Met:
    """What one call met. `weight`: calls that it stands for.

    situation: shortly before it came, as the gate could still have known it.
    alone: real-time calls that it would have met without batch. realtime, running: real-time calls,
    and sequences of both lanes, until its first token came, on the average. grown: how many joined
    since the situation, less those that left. aborted: batch was aborted when it came, so that it
    met its long steps only at first.
    """

    situation: int
    alone: float
    realtime: float
    running: float
    grown: float
    ttft_s: float
    aborted: bool = False
    weight: float = 1.0


class Window:
    """The calls and the time spent in each situation, of the last quarter of an hour."""

    def __init__(self) -> None:
        self._epochs: deque[_Epoch] = deque(maxlen=_EPOCHS)

    def spend(self, now_s: float, where: int, seconds: float) -> None:
        """Time went by in a situation."""
        self._epoch(now_s).seconds[where] += seconds

    def add(self, now_s: float, met: Met) -> None:
        """A call got its first token."""
        self._epoch(now_s).add(met)

    def calls(self) -> list[Met]:
        """All that are kept."""
        return [met for epoch in self._epochs for met in epoch.weighted()]

    def seconds(self) -> list[float]:
        """Seconds spent, by situation."""
        return [sum(epoch.seconds[i] for epoch in self._epochs) for i in range(SITUATIONS)]

    def call_s(self) -> float:
        """How long a real-time call lasts, by Little's law: in flight ÷ calls a second."""
        calls = sum(epoch.seen for epoch in self._epochs)
        seconds = self.seconds()
        busy = sum(level * seconds[len(_SILENCES) + i] for i, level in enumerate(_LEVELS))
        return min(60.0, max(0.5, busy / calls)) if calls else 1.0

    def _epoch(self, now_s: float) -> _Epoch:
        number = int(now_s // EPOCH_S)
        if not self._epochs or number > self._epochs[-1].number:
            while self._epochs and self._epochs[0].number <= number - _EPOCHS:
                self._epochs.popleft()
            self._epochs.append(_Epoch(number))
        return self._epochs[-1]


class _Epoch:
    """Ten seconds of it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.seconds = [0.0] * SITUATIONS
        self._calls: list[Met] = []
        self.seen = 0
        self._stride = 1

    def add(self, met: Met) -> None:
        # Every stride-th call is kept, whatever it met: the start of a burst counts as its end.
        if self.seen % self._stride == 0:
            self._calls.append(met)
            if len(self._calls) > _KEPT:
                self._calls = self._calls[::2]
                self._stride *= 2
        self.seen += 1

    def weighted(self) -> list[Met]:
        weight = self.seen / len(self._calls) if self._calls else 1.0
        for met in self._calls:
            met.weight = weight
        return self._calls


@dataclass(frozen=True, slots=True)
class Plan:
    """The sequences that may run, by situation, and what they follow from.

    baseline_s: P99 of the time to first token as it would be alone. line_s: what it may be.
    measured_s: what it is. too_slow, alone_too_slow: share of calls beyond the line, as
    measured and as it would be without batch. free: share that batch may add in busy times.
    """

    running: Sequence[float]
    baseline_s: float
    line_s: float
    measured_s: float
    too_slow: float
    alone_too_slow: float
    free: float
    calls: int

    def limit(self, realtime: int, silent_s: float) -> float:
        """Batch calls that may be in flight now."""
        return max(0.0, self.running[situation(realtime, silent_s)] - realtime)


@dataclass(frozen=True, slots=True)
class Aim:
    """What the operator asks for. target: 0.05 is five per cent over the baseline.

    can_abort: batch leaves at once when the first call comes after a silence.
    """

    target: float
    can_abort: bool = False
    quantile: float = 0.99
    highest: int = 256


def make_plan(window: Window, curve: Curve, aim: Aim, spend: float, trusted: float) -> Plan | None:
    """The best plan for the calls of the window; None if there are none.

    spend: part of the allowed slow calls that it may use, 1 for all. trusted: no more sequences
    than this, except in silence, as the curve is not known beyond.
    """
    calls = window.calls()
    total = sum(met.weight for met in calls)
    if total < 1:
        return None
    lucks = [_luck(met, curve) for met in calls]
    alone = [
        (_with_luck(curve.ttft_s(met.alone, met.alone), luck), met.weight)
        for luck, met in zip(lucks, calls, strict=True)
    ]
    baseline = weighted_quantile(alone, aim.quantile)
    doubt = (1 + _DOUBT_GROWS * aim.target) * max(_DOUBT_LEAST, _DOUBT / math.sqrt(total))
    line = baseline * (1 + max(aim.target - doubt, aim.target / 2))
    slow = sum(met.weight for met in calls if met.ttft_s > line) / total
    alone_slow = sum(weight for ttft_s, weight in alone if ttft_s > line) / total
    prices = _Prices(window.seconds(), calls, lucks, curve, line, aim, trusted)
    most = max(0.0, 1 - aim.quantile - alone_slow)
    # How many are slow by themselves is a count, and known as well as counts are.
    free = max(_FREE_LEAST * most, most - _COUNT_DOUBT * math.sqrt(alone_slow / total))
    running = prices.solve(most * total, spend * free * total)
    measured = weighted_quantile([(met.ttft_s, met.weight) for met in calls], aim.quantile)
    return Plan(running, baseline, line, measured, slow, alone_slow, free, round(total))


def _luck(met: Met, curve: Curve) -> float:
    """How far a call was from the curve, in a measure that carries over to other numbers of
    sequences.

    Part of a call's luck grows with the step (when in a step it came), part does not (how long
    its prompt is). A call that met a batch that was just being aborted tells nothing of bad luck.
    """
    expected_s = max(curve.ttft_s(met.running, met.realtime), 1e-9)
    luck: float = (met.ttft_s - expected_s) / expected_s**_LUCK_GROWS
    return min(0.0, luck) if met.aborted else luck


def _with_luck(expected_s: float, luck: float) -> float:
    """The time that a call of that luck takes where so much is expected."""
    expected_s = max(expected_s, 0.0)
    taken: float = expected_s + luck * expected_s**_LUCK_GROWS
    return max(0.0, taken)


def _without_luck(ttft_s: float, luck: float) -> float:
    """The inverse: what must be expected for a call of that luck to take so long."""
    # Newton's method: the right side is smooth and nearly straight.
    found: float = max(ttft_s, 1e-6)
    for _ in range(6):
        found -= (found + luck * found**_LUCK_GROWS - ttft_s) / max(
            0.2, 1 + luck * _LUCK_GROWS * found ** (_LUCK_GROWS - 1)
        )
        found = max(found, 1e-6)
    return found


class _Prices:
    """The trade of batch tokens against slow calls."""

    def __init__(
        self,
        seconds: Sequence[float],
        calls: Sequence[Met],
        lucks: Sequence[float],
        curve: Curve,
        line_s: float,
        aim: Aim,
        trusted: float,
    ) -> None:
        # In time up to how many sequences: a situation's own calls, all calls, and all calls if
        # batch were aborted for them.
        own: list[list[tuple[float, float]]] = [[] for _ in range(SITUATIONS)]
        pool: list[tuple[float, float]] = []
        woken: list[tuple[float, float]] = []
        per_sequence = max(_STEPS_UNTIL_ABORT * curve.b, 1e-9)
        for met, luck in zip(calls, lucks, strict=True):
            bearable = curve.running_at(_without_luck(line_s, luck), met.realtime)
            pool.append((bearable, met.weight))
            emptied_s = _with_luck(curve.ttft_s(0, met.realtime), luck)
            woken.append(((line_s - emptied_s) / per_sequence, met.weight))
            if met.aborted:
                bearable = met.running + (line_s - met.ttft_s) / per_sequence
            own[met.situation].append((bearable - met.grown, met.weight))
        all_calls = _Tail(pool)
        all_woken = _Tail(woken) if aim.can_abort else all_calls
        self._seconds = seconds
        self._can_abort = aim.can_abort
        self._choices = [
            _choices(
                i,
                seconds[i],
                _Tail(own[i]),
                all_woken if i < len(_SILENCES) else all_calls,
                curve,
                aim,
                trusted,
            )
            for i in range(SITUATIONS)
        ]

    def solve(self, most: float, spend: float) -> list[float]:
        """Sequences by situation. most: calls that batch may make slow, in all. spend: how many of
        them in busy times, as corrected.

        Long silences are served first, whatever the correction: a mistake about busy times must
        not empty the engine when nobody is there. The others get what is left. Not so where batch
        can't be aborted: then the end of a silence costs many calls.
        """
        own_part = _LONG_SILENCES if self._can_abort else 0
        quiet = _taken(self._choices[:own_part], most)
        left = 1 - sum(slow for _, _, slow in quiet) / most if most > 0 else 0.0
        others = _taken(self._choices[own_part:], spend * max(0.0, left))
        running = [running for running, _, _ in quiet + others]
        return _falling(_filled(running, self._seconds), self._seconds)


def _taken(
    situations: Sequence[Sequence[tuple[float, float, float]]], allowed: float
) -> list[tuple[float, float, float]]:
    """The best choices at the lowest price at which they make no more calls slow than allowed."""

    def take(price: float) -> list[tuple[float, float, float]]:
        return [max(choices, key=lambda c: c[1] - price * c[2]) for choices in situations]

    low, high = 0.0, 1e9
    for _ in range(30):
        price = math.sqrt(max(low, 1e-6) * high)
        if sum(slow for _, _, slow in take(price)) > allowed:
            low = price
        else:
            high = price
    return take(high)


class _Tail:
    """A sorted sample with weights: how much of it lies below a value."""

    def __init__(self, values: list[tuple[float, float]]) -> None:
        values.sort()
        self._values = [value for value, _ in values]
        self._sums = [0.0]
        for _, weight in values:
            self._sums.append(self._sums[-1] + weight)

    @property
    def total(self) -> float:
        return self._sums[-1]

    def below(self, value: float) -> float:
        return self._sums[bisect_left(self._values, value)]


def _choices(
    where: int,
    seconds: float,
    own: _Tail,
    pool: _Tail,
    curve: Curve,
    aim: Aim,
    trusted: float,
) -> list[tuple[float, float, float]]:
    """(sequences, batch tokens won, calls made too slow) for each number worth a look."""
    silent = where < len(_SILENCES)
    realtime = 0 if silent else _LEVELS[where - len(_SILENCES)]
    seconds = max(seconds, 1e-3)
    calls = own.total
    if silent:
        # A silence is only as harmless as it was long.
        many = 1.0 if aim.can_abort else _WHILE_DRAINING
        calls = max(calls, many * seconds / (seconds + _FIRST_AFTER_S))
    borrowed = _BORROWED_IN_SILENCE if silent else _BORROWED
    most = aim.highest if silent else min(aim.highest, trusted)
    found = []
    batch = least = 0.0
    while True:
        running = realtime + batch
        share = (own.below(running) + borrowed * pool.below(running) / pool.total) / (
            own.total + borrowed
        )
        tokens = seconds * batch / max(curve.step_s(running, realtime), 1e-6)
        least = share if batch == 0 else least
        found.append((running, tokens, calls * (share - least)))
        if batch >= most:
            return _worth_it(found)
        batch = min(most, batch + max(1.0, batch // 10))


def _worth_it(choices: list[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """Those that are the best at some price: the upper hull of tokens over slow calls."""
    hull: list[tuple[float, float, float]] = []
    for choice in choices:
        _, tokens, slow = choice
        if hull and tokens <= hull[-1][1]:
            continue
        while hull and slow <= hull[-1][2]:
            hull.pop()
        while len(hull) > 1 and (tokens - hull[-1][1]) * (hull[-1][2] - hull[-2][2]) >= (
            hull[-1][1] - hull[-2][1]
        ) * (slow - hull[-1][2]):
            hull.pop()
        hull.append(choice)
    return hull


def _filled(running: Sequence[float], seconds: Sequence[float]) -> list[float]:
    """The same, with a cautious value for situations that are hardly known.

    They take the value of the next busier one that is known. Beyond the busiest known one it is
    that one's, but what is right in silence says nothing of busy times: then it is very little.
    """
    filled = list(running)
    following: float | None = None
    for i in reversed(range(SITUATIONS)):
        if seconds[i] >= _KNOWN_AFTER_S:
            following = running[i]
        elif following is not None:
            filled[i] = following
    busy = range(len(_SILENCES), SITUATIONS)
    before: float | None = None
    for i in busy:
        if seconds[i] >= _KNOWN_AFTER_S:
            before = running[i]
        elif all(seconds[j] < _KNOWN_AFTER_S for j in range(i, SITUATIONS)):
            filled[i] = _LEVELS[i - len(_SILENCES)] + _UNKNOWN if before is None else before
    return filled


def _falling(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The same, made to fall from silence to the busiest: neighbours that don't are averaged.

    One more real-time call must never leave more room to batch.
    """
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        blocks.append((value, max(weight, 1e-6), 1))
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            (left, left_weight, left_many), (right, right_weight, right_many) = blocks[-2:]
            both = left_weight + right_weight
            mean = (left * left_weight + right * right_weight) / both
            blocks[-2:] = [(mean, both, left_many + right_many)]
    return [value for value, _, many in blocks for _ in range(many)]


def weighted_quantile(values: Sequence[tuple[float, float]], share: float) -> float:
    """The smallest value that at least this share of the weight does not exceed."""
    ordered = sorted(values)
    left = share * sum(weight for _, weight in ordered)
    for value, weight in ordered:
        left -= weight
        if left <= 1e-9:
            return value
    return ordered[-1][0]
