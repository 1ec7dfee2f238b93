"""One pool's gate: what it hears in the domain's terms, and what it says made to happen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import structlog

from schemas.records import ControllerLoad, RealtimeLoad, RealtimePoolLoad, WorkerLoad
from streams.batch_worker.pool import Pool
from streams.domain.gate import signals
from streams.domain.gate.fleet import STALE_AFTER_S, FleetShare, WorkerCalls
from streams.domain.gate.floor import Demand, Work
from streams.domain.gate.gate import Decision, Gate, GateSettings, Reason
from streams.domain.gate.signals import EngineLoad, FirstToken, Signal, Source
from streams.domain.upstreams import Yield

log = structlog.get_logger(__name__)

#: A lane that lives is heard within its second; until then it is not known that there is none.
LISTEN_S = 1.5
#: A realtime-worker that said goodbye and is silent for so long has gone, and isn't missed.
_GONE_AFTER_S = 2.0
#: So has one that was silent for so long while others spoke.
_REPLACED_AFTER_S = 15.0
_BLIND = frozenset({Reason.STALE, Reason.INVALID})


class PoolGate:
    """The gate of one pool and of the pool of its templates."""

    def __init__(
        self,
        worker: str,
        yields: Yield,
        max_in_flight: int,
        pool: Pool,
        renders: Pool,
        now_s: float,
    ) -> None:
        """max_in_flight: of each worker."""
        self._me = worker
        self._yields = yields
        self._max_in_flight = max_in_flight
        self._pool = pool
        self._renders = renders
        self._listen_until_s = now_s + LISTEN_S
        self._knows_past = False
        self._settings = GateSettings(
            target=yields.target,
            highest=max_in_flight,
            floor=yields.floor,
            protect=yields.protect,
            can_abort=yields.abort,
        )
        self.gate = Gate(self._settings)
        self._share = FleetShare(worker)
        #: Realtime-workers that are there: when heard, and whether they said goodbye.
        self._lane: dict[str, tuple[float, bool]] = {}
        #: The other batch-workers that are there.
        self._others: dict[str, WorkerCalls] = {}
        self._due: dict[str, tuple[float, tuple[tuple[int, int], ...]]] = {}
        self._call_s: dict[str, float] = {}
        self.decision: Decision | None = None
        #: What was last told of a signal that can't be relied on.
        self._blind: tuple[Reason, Source | None] | None = None
        #: Calls that were cut.
        self.aborted = 0

    @property
    def name(self) -> str:
        """The pool's."""
        return self._pool.name

    @property
    def part(self) -> int:
        """Calls that this worker may have in flight."""
        return self._pool.part

    @property
    def workers(self) -> int:
        """Batch-workers that are there."""
        return 1 + len(self._others)

    @property
    def in_flight(self) -> int:
        """Calls of all workers, as far as is known."""
        return len(self._pool.calls) + sum(calls.in_flight for calls in self._others.values())

    def hear(self, signal: Signal, now_s: float) -> None:
        """A signal as it is."""
        self.gate.hear(signal, now_s)

    def remember(self, past: Iterable[RealtimeLoad], now_s: float) -> None:
        """The last words of realtime-workers before there was this gate: who is silent now, and
        has not said goodbye, is missed."""
        self._knows_past = True
        for load in past:
            if not load.stopping and any(pool.pool == self.name for pool in load.pools):
                self._lane.setdefault(load.worker, (min(now_s, load.at_ms / 1000), False))

    def hear_realtime(self, load: RealtimeLoad, now_s: float) -> None:
        """A realtime-worker's load on this pool."""
        for pool in load.pools:
            if pool.pool == self.name:
                self._lane[load.worker] = (now_s, load.stopping)
                self.gate.hear(_signal(load, pool), now_s)

    def hear_engine(self, load: EngineLoad, siblings: int, now_s: float) -> None:
        """The engine's word; siblings: batch calls of other pools that it runs."""
        self._count(now_s)
        # What can't be true must stay so.
        running = load.running - min(siblings, max(0, load.running))
        self.gate.hear(replace(load, running=running), now_s)

    def hear_worker(self, load: WorkerLoad, now_s: float) -> None:
        """Another batch-worker's load."""
        for pool in load.pools:
            if pool.pool == self.name:
                # One that reads nothing can't use a part.
                wants = self._max_in_flight if load.partitions and not load.stopping else 0
                calls = WorkerCalls(load.worker, now_s, max(0, pool.in_flight), wants)
                self._others[load.worker] = calls
                self._share.hear(calls)
                self._call_s[load.worker] = max(0, pool.call_ms) / 1000

    def hear_due(self, load: ControllerLoad, now_s: float) -> None:
        """What waits at a controller, by deadline."""
        names = (self.name, self._renders.name)
        due = tuple(
            (due.deadline_ms, due.lines)
            for pool in load.pools
            if pool.pool in names
            for due in pool.due
        )
        self._due[load.controller] = (now_s, due)

    def apply(self, now_s: float) -> bool:
        """Asks the gate and obeys; whether anything is different."""
        self._forget(now_s)
        self.gate.configure(self._current(now_s))
        self._count(now_s)
        decision = self.gate.decide(now_s, self._demand(now_s))
        self._tell(decision, now_s)
        self.decision = decision
        mine = WorkerCalls(self._me, now_s, len(self._pool.calls), self._max_in_flight)
        part = min(self._share.part(decision.limit, mine, now_s), self._max_in_flight)
        if decision.abort_above is not None:
            self.aborted += self._pool.calls.cut(part)
        reason = decision.reason.value
        self._pace(decision.gap_s)
        news = self._pool.allow(part, reason)
        return self._renders.allow(part, reason) or news

    def _pace(self, gap_s: float) -> None:
        """The fleet's gap between starts, shared by those who can start anything."""
        workers = self._able
        self._pool.pace(gap_s * workers, self._share.turn if workers > 1 else 0.0)

    @property
    def _able(self) -> int:
        """Workers that can run anything."""
        return 1 + sum(calls.wants > 0 for calls in self._others.values())

    def _count(self, now_s: float) -> None:
        # An engine may have been asked just when there were most of our calls.
        others = self.in_flight - len(self._pool.calls)
        self.gate.batch_in_flight(self._pool.calls.most() + others, now_s)
        self.gate.batch_in_flight(self.in_flight, now_s)

    def _current(self, now_s: float) -> GateSettings:
        """The settings, for as many workers as there are now."""
        highest = self._max_in_flight * self._able
        if self._yields.highest is not None:
            highest = min(highest, self._yields.highest)
        sources = self._yields.signals
        if sources is None:
            listens = now_s < self._listen_until_s or not self._knows_past
            lane = bool(self._lane) or listens
            engine = self._yields.metrics_url is not None
            sources = frozenset(
                source
                for source, wanted in ((Source.REALTIME, lane), (Source.ENGINE, engine))
                if wanted
            )
        return replace(self._settings, highest=highest, sources=sources)

    def _demand(self, now_s: float) -> Demand:
        work = tuple(
            Work(lines, deadline_ms / 1000 - now_s)
            for _, due in self._due.values()
            for deadline_ms, lines in due
        )
        known = [s for s in (self._pool.calls.call_s, *self._call_s.values()) if s > 0]
        return Demand(work, sum(known) / len(known) if known else 0.0)

    def _forget(self, now_s: float) -> None:
        newest_s = max((heard_s for heard_s, _ in self._lane.values()), default=0.0)
        for name, (heard_s, leaving) in list(self._lane.items()):
            replaced = newest_s - heard_s > _REPLACED_AFTER_S
            if replaced or (leaving and now_s - heard_s > _GONE_AFTER_S):
                del self._lane[name]
                self.gate.left(name, now_s)
        for name, calls in list(self._others.items()):
            if now_s - calls.at_s > STALE_AFTER_S:
                del self._others[name]
                self._call_s.pop(name, None)
        for name, (heard_s, _) in list(self._due.items()):
            if now_s - heard_s > STALE_AFTER_S:
                del self._due[name]

    def _tell(self, decision: Decision, now_s: float) -> None:
        """One log line when a signal is lost, or another one is, and one when all are back."""
        if now_s < self._listen_until_s:
            return
        blind = (decision.reason, decision.about) if decision.reason in _BLIND else None
        before, self._blind = self._blind, blind
        if blind == before:
            return
        if blind is None:
            log.info(
                "The signals are back.",
                action="gate_sees",
                pool=self.name,
                reason=decision.reason.value,
            )
        elif decision.about is not None:
            age_s = decision.ages_s.get(decision.about)
            log.warning(
                "A signal can't be relied on; batch calls go on at their floor.",
                action="gate_blind",
                pool=self.name,
                reason=decision.reason.value,
                signal=decision.about.value,
                age_s=None if age_s is None else round(age_s, 1),
            )


def _signal(load: RealtimeLoad, pool: RealtimePoolLoad) -> signals.RealtimeLoad:
    # Older workers don't say when calls were sent: then their times teach nothing.
    firsts = zip(pool.ttft_sent_ms, pool.ttft_us, strict=False)
    return signals.RealtimeLoad(
        worker=load.worker,
        at_s=load.at_ms / 1000,
        in_flight=pool.in_flight + pool.waiting,
        first_tokens=tuple(FirstToken(sent_ms / 1000, us / 1e6) for sent_ms, us in firsts),
        gaps=pool.gaps,
        gaps_s=pool.gaps_us / 1e6,
        awaiting=pool.awaiting,
    )
