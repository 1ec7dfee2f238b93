"""The gate: how many batch calls an upstream and model can carry now without anybody noticing.

    signals ─► believed? ─► history ─► curve.py ───────┐
                   │            └────► window (plan.py) ┴─► plan, each few seconds
                   no                                             │
                   ▼                                              ▼ at each signal
                 floor ──────────────────► limiter ◄── the situation's limit, queues, deadlines
                                              ▼
                                     Decision: limit, abort_above, reason

Closed in two loops. The fast one follows the real-time calls in flight, signal by signal: it is
only a look into the plan. The slow one learns the engine's curve and the unloaded baseline, makes
the plan, and corrects it by what the calls really met. Pure: whoever owns it says what time it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from streams.domain.gate.alone import Shadow
from streams.domain.gate.curve import CurveLearner
from streams.domain.gate.floor import NO_DEMAND, Demand, Protect, needed_calls
from streams.domain.gate.history import History
from streams.domain.gate.limiter import Limiter
from streams.domain.gate.plan import WINDOW_S, Aim, Met, Plan, Window, make_plan, situation
from streams.domain.gate.signals import (
    STALE_AFTER_S,
    EngineLoad,
    QueueLoad,
    RealtimeLoad,
    Signal,
    Source,
    is_possible,
    source_of,
)

#: A realtime-worker that is silent for so long, while others speak, has gone.
_GONE_AFTER_S = 15.0
#: How often the plan is made anew; at first, when little is known, more often.
_PLAN_EVERY_S = 10.0
_FIRST_PLANS_EVERY_S = 2.0
_FIRST_PLANS_CALLS = 500
_NEVER = float("inf")
#: Where first tokens are not seen: steps that one takes, and calls learnt from one reading.
_STEPS_TO_FIRST = 4
_MOST_INFERRED = 50
#: How long a real-time call lasts, before the first ended.
_CALL_AT_FIRST_S = 3.0
#: From the moment that a call comes to the moment that an abort has made room for it.
_REACTION_S = 0.25
#: Real-time calls to learn from before there is a plan, and batch calls meanwhile.
_CALLS_TO_LEARN = 50
_CALLS_MEANWHILE = 4
_IN_SILENCE_MEANWHILE = 32
#: Beside real-time calls the curve is believed up to this multiple of what was seen running for
#: a second or so, and only as far as so many calls bear it out.
_TRUST_FACTOR = 1.5
_TRUST_PACE = 0.05
_TRUST_LEAST = 8.0
_TRUST_CALLS = 4
#: What is over so soon needs no abort: it has left when a burst must be at its floor.
_SOON_OVER_S = 1.0
#: Batch is aborted when it is above the limit by this part of all that may run, and at least that
#: many: less drains by itself, and is not worth the tokens.
_ABORT_PART = 0.4
_ABORT_LEAST = 8
#: Calls made too slow, as a part of those that may be: how hard a miss is corrected, and the bounds
#: of what the plan may spend then, as it counts. With 1 a window's miss is made good within the
#: next one; harder, what is only luck swings the plan from end to end.
_SPEND_GAIN = 1.0
_SPEND_AT_FIRST = 0.3
_LEAST_SPEND, _MOST_SPEND = 0.02, 2.0
#: After a silence of at least so long, the first call means that more come: for a moment batch is
#: aborted when it is above the limit by more than this.
_SILENCE_S = 2.0
_WAKE_S = 1.0
_ABORT_WOKEN = 2
#: A burst begins: so many times the real-time calls of half a second before, and so many more. Then
#: the limit is that of the calls that will be there when they come on like this for a second.
_BURST_S = 0.5
_BURST_FACTOR = 1.25
_BURST_LEAST = 4
_BURST_AHEAD_S = 1.0
#: Starts that the gap between them leaves room for, as a multiple of those that replace what ends.
_STARTS_POSSIBLE = 2
#: No batch call is started while a real-time call waits for its first token, but for no longer than
#: this: calls that come one upon another, or one that is stuck, must not keep batch out for good.
_HOLD_S = 0.5
#: Above this much of the KV cache nothing is added; preemption is near.
_KV_FULL = 0.92
#: An engine's page and the workers' loads may be so far apart: what both explain is not a stranger.
_ENGINE_LAG_S = 0.5
#: Of strangers of the last reading that may have ended, so many are taken to be there still.
_STILL_THERE = 0.5
#: No call stays for longer: what ran before a pause of so long doesn't matter.
_LONGEST_PAUSE_S = 60.0


class Reason(StrEnum):
    """Why the limit is what it is; also its label in metrics and logs."""

    #: No real-time call is in flight.
    SILENCE = "silence"
    #: Real-time calls are in flight, and this is what they leave.
    YIELD = "yield"
    #: Too little is known of this engine yet.
    LEARNING = "learning"
    #: Real-time work waits, or the engine is full.
    QUEUE = "queue"
    #: A signal has not come, or not for too long.
    STALE = "stale"
    #: A signal says what can't be true.
    INVALID = "invalid"
    #: A window is in danger and goes before real-time.
    WINDOW = "window"


#: Where real-time calls are known to be there, batch may be aborted for them.
_ABORTING = frozenset({Reason.YIELD, Reason.QUEUE, Reason.LEARNING})


@dataclass(frozen=True, slots=True)
class GateSettings:
    """What the operator says of an upstream and model.

    target: of P99 time to first token, over the baseline. highest: batch calls, all workers.
    floor: batch calls that go on when nothing can be believed. sources: signals that must come.
    """

    target: float = 0.05
    highest: int = 256
    floor: int = 2
    protect: Protect = Protect.REALTIME
    can_abort: bool = False
    sources: frozenset[Source] = frozenset({Source.REALTIME})


@dataclass(frozen=True, slots=True)
class Decision:
    """What the fleet may do now.

    limit: calls that may be in flight; start none beyond. abort_above: abort those beyond it, if
    not None. floor: what the deadlines ask for. about: the source that the reason speaks of.
    gap_s: between two starts of the whole fleet, at least; infinite: start none now.
    """

    limit: int
    abort_above: int | None
    floor: int
    reason: Reason
    about: Source | None = None
    ages_s: Mapping[Source, float] = field(default_factory=dict)
    gap_s: float = 0.0


class Gate:
    """The gate of one upstream and model, for the whole fleet. Times must not go back."""

    def __init__(self, settings: GateSettings) -> None:
        self._settings = settings
        self._workers: dict[str, RealtimeLoad] = {}
        self._queue: QueueLoad | None = None
        self._engine: EngineLoad | None = None
        self._invalid: set[Source] = set()
        #: Real-time calls in flight: those of our lane, and those that only the engine tells of.
        self._realtime = History()
        #: The same by this process's clock: when they were heard of.
        self._heard = History()
        self._lane = History()
        self._direct = 0.0
        self._called_at_s = float("-inf")
        self._began_s: float | None = None
        self._lasting = False
        self._sees_firsts = False
        self._batch = History()
        self._shadow = Shadow()
        self._woken_at_s = float("-inf")
        #: Since when some real-time call or other waits for its first token; NEVER while none does.
        self._awaited_since_s = _NEVER
        self._call_s = _CALL_AT_FIRST_S
        self._aborted_at_s = float("-inf")
        #: Since when there is no real-time call in flight; NEVER while there is one.
        self._silent_since = History(_NEVER)
        self._accounted_s: float | None = None
        self._curve = CurveLearner()
        self._window = Window()
        self._seen_running = 0.0
        self._plan: Plan | None = None
        self._plan_at_s = float("-inf")
        self._spend = _SPEND_AT_FIRST
        self._limiter = Limiter(settings.highest, float(settings.floor))

    @property
    def plan(self) -> Plan | None:
        """The plan in force, with the baseline and what was measured."""
        return self._plan

    def configure(self, settings: GateSettings) -> None:
        """Other settings from now on; what was learnt is kept."""
        self._settings = settings
        self._limiter.highest = settings.highest

    # What it hears.

    def hear(self, signal: Signal, now_s: float) -> None:
        """Takes a signal in, if it can be believed."""
        source = source_of(signal)
        if not is_possible(signal, now_s):
            self._invalid.add(source)
            return
        self._invalid.discard(source)
        self._account(now_s)
        match signal:
            case RealtimeLoad():
                self._hear_realtime(signal, now_s)
            case QueueLoad():
                self._queue = signal
            case EngineLoad():
                self._engine = signal
                self._infer_realtime(signal, now_s)

    def left(self, worker: str, now_s: float) -> None:
        """This realtime-worker has ended in good order: its silence means nothing."""
        if self._workers.pop(worker, None) is not None:
            self._count_lane(now_s, now_s)

    def batch_in_flight(self, calls: int, now_s: float) -> None:
        """All workers together have so many batch calls in flight."""
        self._account(now_s)
        self._batch.set(now_s, calls)

    # What it says.

    def decide(self, now_s: float, demand: Demand = NO_DEMAND) -> Decision:
        """How many batch calls may be in flight now."""
        if self._began_s is None:
            self._began_s = now_s
        self._account(now_s)
        self._forget_gone(now_s)
        self._plan_anew(now_s)
        settings = self._settings
        need = min(needed_calls(demand), settings.highest)
        ages = self._ages(now_s)
        wanted, reason, about = self._wanted(now_s, ages, demand.call_s)
        floor = min(settings.floor, settings.highest)
        if reason in (Reason.STALE, Reason.INVALID):
            wanted = floor
        if settings.protect is Protect.WINDOW and need > wanted:
            wanted, reason, about = float(need), Reason.WINDOW, None
        step_s = self._step_s()
        limit = self._limiter.move(wanted, now_s, 1 / step_s if step_s > 0 else math.inf)
        above = self._abort_above(limit, reason, now_s)
        gap_s = self._gap_s(step_s, demand.call_s, now_s)
        return Decision(limit, above, need, reason, about, ages, gap_s)

    def _step_s(self) -> float:
        """A step of the engine, beside real-time calls: so far apart batch calls may come, as each
        brings its prefill, and real-time calls wait for the prefills of several steps."""
        realtime = self._realtime.last
        step_s = self._curve.curve().step_s(realtime + self._batch.last, realtime)
        return step_s if realtime > 0 else 0.0

    def _gap_s(self, step_s: float, call_s: float, now_s: float) -> float:
        """Between two starts. Behind one address there may be many engines, so it is never so long
        that calls could not be replaced as they end, and some more for when starts are held."""
        if 0 <= now_s - self._awaited_since_s < _HOLD_S:
            return math.inf
        replaced_s = call_s / (_STARTS_POSSIBLE * max(1, self._limiter.limit))
        return min(step_s, replaced_s) if call_s > 0 else step_s

    def _wanted(
        self, now_s: float, ages: Mapping[Source, float], call_s: float
    ) -> tuple[float, Reason, Source | None]:
        for source in sorted(self._settings.sources):
            if source in self._invalid:
                return 0.0, Reason.INVALID, source
            if ages.get(source, float("inf")) > STALE_AFTER_S:
                return 0.0, Reason.STALE, source
        realtime, silent_s = round(self._realtime.last), self._silent_s(now_s)
        reason = Reason.YIELD if realtime else Reason.SILENCE
        wanted = self._planned(realtime, silent_s, self._coming(now_s))
        if now_s - self._called_at_s > WINDOW_S:
            # Nobody to yield to: what there is to learn, the first call will teach.
            wanted = self._uncalled(now_s, call_s)
            self._limiter.jump(wanted)
        if wanted is None:
            wanted, reason = self._unplanned(realtime, silent_s), Reason.LEARNING
        held = self._held_back(wanted, realtime, now_s)
        if held < wanted:
            return held, Reason.QUEUE, None
        return wanted, reason, None

    def _uncalled(self, now_s: float, call_s: float) -> float:
        """While nobody has called for a long time, or ever.

        The first burst meets all that runs, and what can't be aborted stays as long as its calls
        take. So then it is only as much as was listened for: where nobody has called for so long,
        nobody is expected for as long again.
        """
        highest, began_s = self._settings.highest, self._began_s
        # For good: calls are quick in a nearly empty engine, too, and it would swing.
        self._lasting = self._lasting or call_s > _SOON_OVER_S
        leaves = self._settings.can_abort or (call_s > 0 and not self._lasting)
        if leaves or not self._settings.sources or began_s is None:
            return highest
        return min(highest, max(_IN_SILENCE_MEANWHILE, highest * (now_s - began_s) / WINDOW_S))

    def _planned(self, realtime: int, silent_s: float, coming: int) -> float | None:
        if self._plan is None or self._plan.calls < _CALLS_TO_LEARN:
            return None
        now = self._plan.limit(realtime, silent_s)
        if coming == 0:
            return now
        # Room for those that come is made now, and used by nobody until they are there.
        return min(now, self._plan.limit(realtime + coming, 0.0) + coming)

    def _coming(self, now_s: float) -> int:
        """Real-time calls that a burst which has just begun will bring within a second; else 0."""
        realtime, before = self._heard.last, self._heard.at(now_s - _BURST_S)
        if realtime < _BURST_FACTOR * before + _BURST_LEAST:
            return 0
        return round((realtime - before) * _BURST_AHEAD_S / _BURST_S)

    def _unplanned(self, realtime: int, silent_s: float) -> float:
        """While little is known: next to nothing beside real-time calls, much in silence."""
        if realtime == 0 and silent_s >= 1.0:
            highest = self._settings.highest
            return highest if self._settings.can_abort else min(highest, _IN_SILENCE_MEANWHILE)
        return min(_CALLS_MEANWHILE, self._settings.highest)

    def _held_back(self, wanted: float, realtime: int, now_s: float) -> float:
        """Less, where work waits in Kafka or in the engine, or the engine's memory is full."""
        queue, engine = self._queue, self._engine
        if queue is not None and queue.lag > 0 and now_s - queue.at_s <= STALE_AFTER_S:
            wanted = wanted / (1 + queue.lag)
        if engine is not None and now_s - engine.at_s <= STALE_AFTER_S:
            batch = self._batch.at(engine.at_s)
            if engine.waiting > 0 and realtime > 0:
                wanted = min(wanted, max(0.0, batch - engine.waiting))
            if engine.kv_cache_usage >= _KV_FULL:
                wanted = min(wanted, 0.9 * batch)
        return wanted

    def _abort_above(self, limit: int, reason: Reason, now_s: float) -> int | None:
        if not self._settings.can_abort or reason not in _ABORTING or self._realtime.last == 0:
            return None
        woken = now_s - self._woken_at_s < _WAKE_S or self._coming(now_s) > 0
        if self._batch.last > limit + (
            _ABORT_WOKEN
            if woken
            else max(_ABORT_LEAST, _ABORT_PART * (limit + self._realtime.last))
        ):
            self._aborted_at_s = now_s
            return limit
        return None

    # What it learns.

    def _hear_realtime(self, load: RealtimeLoad, now_s: float) -> None:
        self._workers[load.worker] = load
        self._count_lane(load.at_s, now_s)
        self._sees_firsts = self._sees_firsts or bool(load.first_tokens)
        if not any(worker.awaiting for worker in self._workers.values()):
            self._awaited_since_s = _NEVER
        elif self._awaited_since_s == _NEVER:
            self._awaited_since_s = now_s
        running = self._realtime.at(load.at_s) + self._batch.at(load.at_s)
        if load.gaps:
            self._learn_gaps(running, self._realtime.at(load.at_s), load.gaps, load.gaps_s)
        for token in load.first_tokens:
            self._learn_call(token.sent_at_s, token.ttft_s, now_s)

    def _infer_realtime(self, load: EngineLoad, now_s: float) -> None:
        """Real-time calls that don't pass through us: what is in the engine and isn't ours.

        Their first tokens are not seen, so each is taken to need a few steps: a bound on the
        step's time then stands for one on the first token's.
        """
        from_s, before = load.at_s - _ENGINE_LAG_S, self._direct
        batch = self._batch.at(load.at_s)
        # Of our own calls the page may show as many as there were of late, or as few. As long as
        # that explains it, there may be as many strangers as before, though it is ever less
        # likely: batch that was just aborted must not hide the calls that it was aborted for.
        engine = load.running + load.waiting
        fewest = max(0.0, engine - self._batch.most(from_s) - self._lane.most(from_s))
        most = max(0.0, engine - self._batch.least(from_s) - self._lane.least(from_s))
        left = min(fewest + _STILL_THERE * max(0.0, before - fewest), most)
        self._direct = left if left >= fewest + 0.5 else fewest
        self._set_realtime(self._lane.last + self._direct, load.at_s, now_s)
        if load.gaps and not self._sees_firsts:
            self._learn_gaps(load.running, self._realtime.at(load.at_s), load.gaps, load.gaps_s)
            step_s = self._curve.curve().step_s(self._realtime.last + batch, self._realtime.last)
            for _ in range(min(_MOST_INFERRED, round(self._direct - before))):
                self._learn_call(load.at_s, _STEPS_TO_FIRST * step_s, now_s)

    def _learn_gaps(self, running: float, realtime: float, gaps: int, gaps_s: float) -> None:
        self._curve.gaps(running, realtime, gaps_s / gaps)
        if running > self._seen_running:
            self._seen_running += _TRUST_PACE * (running - self._seen_running)

    def _learn_call(self, sent_at_s: float, ttft_s: float, now_s: float) -> None:
        # Where batch may not be aborted, its calls of a while ago are what this one met.
        aborted = self._aborted_at_s > sent_at_s - self._call_s
        then_s = sent_at_s - (_REACTION_S if self._settings.can_abort else self._call_s)
        known = self._realtime.at(then_s)
        where = situation(round(known), max(0.0, then_s - self._silent_since.at(then_s)))
        running_then = known + self._batch.at(then_s)
        if self._plan is not None and not aborted:
            # What was planned is what the next plan can change, not what was left from before.
            running_then = max(known, self._plan.running[where])
        until_s = sent_at_s + ttft_s
        realtime = self._realtime.mean(sent_at_s, until_s)
        running = realtime + self._batch.mean(sent_at_s, until_s)
        grown = running - running_then
        alone = self._alone(sent_at_s, realtime)
        fresh = aborted and sent_at_s - self._aborted_at_s < _REACTION_S
        # What had just been aborted is what the call's situation asked it to bear; later on, what
        # has gone in between would have gone anyway.
        grown = max(0.0, grown) if aborted and not fresh else grown
        if not fresh:
            self._curve.first(running, realtime, ttft_s)
        self._window.add(now_s, Met(where, alone, realtime, running, grown, ttft_s, fresh))

    def _alone(self, sent_at_s: float, realtime: float) -> float:
        before_s = max(self._shadow.last_s, sent_at_s - _LONGEST_PAUSE_S)
        running = self._realtime.mean(before_s, sent_at_s) + self._batch.mean(before_s, sent_at_s)
        return self._shadow.came(sent_at_s, realtime, running, self._curve.curve())

    def _count_lane(self, at_s: float, now_s: float) -> None:
        self._lane.set(at_s, sum(worker.in_flight for worker in self._workers.values()))
        self._set_realtime(self._lane.last + self._direct, at_s, now_s)

    def _set_realtime(self, calls: float, at_s: float, now_s: float) -> None:
        if calls > 0:
            self._called_at_s = now_s
            if self._silent_s(now_s) >= _SILENCE_S:
                self._woken_at_s = now_s
            self._silent_since.set(at_s, _NEVER)
        elif self._silent_since.last == _NEVER:
            self._silent_since.set(at_s, at_s)
        self._realtime.set(at_s, calls)
        self._heard.set(now_s, calls)

    def _silent_s(self, now_s: float) -> float:
        return max(0.0, now_s - self._silent_since.last)

    def _account(self, now_s: float) -> None:
        """Books the time since the last call to the situation that it was spent in."""
        if self._accounted_s is not None and now_s > self._accounted_s:
            where = situation(round(self._realtime.last), self._silent_s(self._accounted_s))
            passed_s = now_s - self._accounted_s
            self._window.spend(now_s, where, passed_s)
            realtime = self._realtime.last
            step_s = self._curve.curve().step_s(realtime + self._batch.last, realtime)
            if step_s > 0:
                self._shadow.spend(realtime, passed_s / step_s)
        self._accounted_s = max(now_s, self._accounted_s or now_s)

    def _plan_anew(self, now_s: float) -> None:
        young = self._plan is None or self._plan.calls < _FIRST_PLANS_CALLS
        every = _FIRST_PLANS_EVERY_S if young else _PLAN_EVERY_S
        if now_s - self._plan_at_s < every or not self._curve.knows_firsts:
            return
        self._plan_at_s = now_s
        aim = Aim(self._settings.target, self._settings.can_abort, highest=self._settings.highest)
        calls = self._plan.calls if self._plan else 0
        trusted = min(_TRUST_FACTOR * self._seen_running, _TRUST_LEAST + calls / _TRUST_CALLS)
        plan = make_plan(self._window, self._curve.curve(), aim, self._spend, trusted)
        if plan is not None:
            self._plan = plan
            self._call_s = self._window.call_s()
            used = (plan.too_slow - plan.alone_too_slow) / max(1e-3, plan.free)
            self._spend = min(_MOST_SPEND, max(_LEAST_SPEND, 1 + _SPEND_GAIN * (1 - used)))

    def _forget_gone(self, now_s: float) -> None:
        if self._direct and self._engine and now_s - self._engine.at_s > STALE_AFTER_S:
            self._direct = 0.0
            self._count_lane(now_s, now_s)
        newest = max((load.at_s for load in self._workers.values()), default=now_s)
        if now_s - newest > STALE_AFTER_S:
            return
        for name, load in list(self._workers.items()):
            if now_s - load.at_s > _GONE_AFTER_S:
                del self._workers[name]
                self._count_lane(now_s, now_s)

    def _ages(self, now_s: float) -> dict[Source, float]:
        """By source, the age of its oldest part; a source that never spoke is left out."""
        ages: dict[Source, float] = {}
        if self._workers:
            oldest = min(load.at_s for load in self._workers.values())
            ages[Source.REALTIME] = now_s - oldest
        if self._queue is not None:
            ages[Source.QUEUE] = now_s - self._queue.at_s
        if self._engine is not None:
            ages[Source.ENGINE] = now_s - self._engine.at_s
        return ages
