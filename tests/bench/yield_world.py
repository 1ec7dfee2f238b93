"""One engine, real-time traffic from a trace, batch calls as a policy allows: in virtual time.

trace ─► engine ◄─ batch calls, as many as the policy allows now
           │ └──► raw samples: every TTFT, every gap between tokens, every batch token
           └────► what a policy may look at
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from streams.simulator.engine import Engine, EngineRequest, EngineSpec, Lane, Step
from tests.bench.yield_traces import Trace, batch_lines

#: A line whose call was aborted so often is left alone.
MAX_ABORTS = 3
_TIMELINE_S = 0.5


class Order(NamedTuple):
    """What a policy wants now: start no more beyond `limit`, abort those beyond `abort_above`."""

    limit: int
    abort_above: int = 1_000_000


class Policy(Protocol):
    """How many batch calls may be in flight; asked after everything that happens."""

    def order(self, now_s: float, world: World) -> Order:
        """What to do now."""
        ...

    def next_at_s(self) -> float:
        """When to ask again even if nothing happens; infinity for never."""
        ...


@dataclass(slots=True, eq=False)
class Call:
    """A batch line that is in flight."""

    request: EngineRequest
    aborts: int


@dataclass(slots=True)
class Samples:
    """What a run measured; seconds and tokens.

    gaps: (length, how many) of real-time inter-token gaps, by step: every gap is in there.
    batch_tokens: generated for batch calls and not thrown away by an abort.
    timeline: (time, real-time in flight, batch in flight), each half second.
    """

    ttfts: list[float] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)
    gaps: list[tuple[float, int]] = field(default_factory=list)
    batch_tokens: int = 0
    wasted_tokens: int = 0
    aborts: int = 0
    duration_s: float = 0.0
    timeline: list[tuple[float, int, int]] = field(default_factory=list)


class World:
    """One run; what a policy reads of it is its own business, and said there."""

    def __init__(self, trace: Trace, spec: EngineSpec, *, batch: bool = True) -> None:
        self.trace = trace
        self.engine = Engine(spec)
        self.samples = Samples(duration_s=trace.duration_s)
        self.calls: dict[EngineRequest, Call] = {}
        self.realtime_in_flight = 0
        self.started = 0
        self.last_step: Step | None = None
        #: Of the event that the policy is asked about: requests that arrived or ended.
        self.news: tuple[EngineRequest, ...] = ()
        self._next_line = batch_lines(trace.seed)
        self._again: list[tuple[int, int, int]] = []
        self._batch = batch

    @property
    def in_flight(self) -> int:
        """Batch calls in flight."""
        return len(self.calls)

    def run(self, policy: Policy) -> Samples:
        """Plays the trace to its end."""
        arrivals = iter(self.trace.arrivals)
        arrival = next(arrivals, None)
        end = self.trace.duration_s
        next_point = 0.0
        if self._batch:
            self._obey(policy.order(0.0, self), 0.0)
        while True:
            step_at = self.engine.next_at_s
            at = policy.next_at_s()
            if arrival is not None and arrival.at_s < at:
                at = arrival.at_s
            if step_at is not None and step_at < at:
                at = step_at
            if at >= end:
                return self._close()
            if at >= next_point:
                point = (at, self.realtime_in_flight, len(self.calls))
                self.samples.timeline.append(point)
                next_point = at + _TIMELINE_S
            self.last_step = None
            self.news = ()
            if at == step_at:
                self._step(self.engine.end_step())
            elif arrival is not None and at == arrival.at_s:
                request = EngineRequest(
                    Lane.REALTIME, arrival.prompt_tokens, arrival.output_tokens, priority=0
                )
                self.engine.submit(request, at)
                self.realtime_in_flight += 1
                self.news = (request,)
                arrival = next(arrivals, None)
            if self._batch:
                self._obey(policy.order(at, self), at)

    def _step(self, step: Step) -> None:
        self.last_step = step
        self.news = step.finished
        samples = self.samples
        if step.gaps[Lane.REALTIME]:
            samples.gaps.append((step.end_s - step.start_s, step.gaps[Lane.REALTIME]))
        samples.gaps += [(gap, 1) for gap in step.late]
        for request in step.first:
            if request.lane is Lane.REALTIME and request.first_at_s is not None:
                samples.ttfts.append(request.first_at_s - request.submitted_at_s)
                samples.arrived.append(request.submitted_at_s)
        for request in step.finished:
            if request.lane is Lane.REALTIME:
                self.realtime_in_flight -= 1
            else:
                del self.calls[request]
                samples.batch_tokens += request.output_tokens

    def _obey(self, order: Order, now_s: float) -> None:
        if len(self.calls) > order.abort_above:
            self._abort(len(self.calls) - order.abort_above)
        while len(self.calls) < order.limit:
            prompt, output, aborts = self._again.pop() if self._again else (*self._next_line(), 0)
            request = EngineRequest(Lane.BATCH, prompt, output, priority=1)
            self.engine.submit(request, now_s)
            self.calls[request] = Call(request, aborts)
            self.started += 1

    def _abort(self, many: int) -> None:
        """The youngest first: they lose the least."""
        for request, call in reversed(list(self.calls.items())):
            if many <= 0:
                return
            if call.aborts < MAX_ABORTS:
                many -= 1
                self.samples.wasted_tokens += self.engine.made(request)
                self.samples.aborts += 1
                self.engine.abort(request)
                del self.calls[request]
                self._again.append((request.prompt_tokens, request.output_tokens, call.aborts + 1))

    def _close(self) -> Samples:
        # What is under way at the end was not in vain: only aborted work is.
        self.samples.batch_tokens += sum(self.engine.made(request) for request in self.calls)
        return self.samples


def percentile(samples: Iterable[float], share: float) -> float:
    """The smallest sample that at least this share of all samples does not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def weighted_percentile(samples: Iterable[tuple[float, int]], share: float) -> float:
    """The same over (value, how many) pairs."""
    ordered = sorted(samples)
    left = share * sum(count for _, count in ordered)
    for value, count in ordered:
        left -= count
        if left <= 1e-9:
            return value
    return 0.0


def idle_share(trace: Trace, spec: EngineSpec) -> float:
    """The share of the engine's capacity that the trace leaves to batch, from 0 to 1.

    A request takes c seconds a prompt token and, in a full engine, a/max_num_seqs + b seconds an
    output token: its part of the steps that it would be in.
    """
    per_output = spec.step_s / spec.max_num_seqs + spec.per_decode_s
    taken = sum(
        spec.per_prefill_token_s * arrival.prompt_tokens + per_output * arrival.output_tokens
        for arrival in trace.arrivals
    )
    return 1 - taken / trace.duration_s
