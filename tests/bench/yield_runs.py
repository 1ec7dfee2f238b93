"""Which runs the yield bench makes, and what it counts of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import Pool

from streams.domain.gate.gate import GateSettings
from streams.simulator.engine import EngineSpec
from streams.simulator.engine_lengths import NAIVE_CALLS
from tests.bench.yield_engine import EngineOnly
from tests.bench.yield_gate import Backhaul
from tests.bench.yield_oracle import Oracle
from tests.bench.yield_policies import Aimd, FallingCap, StaticCap, TwoLevels
from tests.bench.yield_traces import TRACES, Trace
from tests.bench.yield_world import (
    Policy,
    Samples,
    World,
    idle_share,
    percentile,
    weighted_percentile,
)

SEEDS = (1, 2, 3)
#: P99 time to first token over that of real-time alone.
LEVELS = (0.05, 0.10, 0.25, 0.50)
#: Slots that Backhaul leaves free, as its operator is told to.
_SPARE_SLOTS = 16
_ALONE_S = 300.0
_CAPS = (2, 4, 8, 16, 32, 64, 128, 256)
_TOPS = (32, 48, 64, 80, 100, 128)
#: Sequences in all, up to 14 real-time calls and beyond.
_PAIRS = ((60, 40), (70, 40), (80, 40), (80, 50), (100, 60), (100, 80), (115, 80), (140, 110))
_RUNNING = (24, 40, 56, 72, 88, 104, 124, 144)


@dataclass(frozen=True, slots=True)
class Contender:
    """One policy of a family; a family's best member is chosen in hindsight, level by level."""

    family: str
    name: str
    make: Callable[[Trace], Policy]
    #: For a policy that is told the level: it competes there only.
    level: float | None = None
    #: The traces that it is for; none for all of them.
    traces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Score:
    """One policy on one trace, over all seeds. over_alone: P99 TTFT ÷ that of alone, minus 1."""

    trace: str
    family: str
    name: str
    level: float | None
    p50_ms: float
    p99_ms: float
    over_alone: float
    gap_p99_ms: float
    tokens_s: float
    efficiency: float
    wasted: float
    each_over: tuple[float, ...]


def contenders(spec: EngineSpec) -> list[Contender]:
    """Everybody."""
    found = [Contender("naive", f"{NAIVE_CALLS} calls", lambda _: StaticCap(NAIVE_CALLS))]
    found += [Contender("static", f"cap {cap}", _static(cap)) for cap in _CAPS]
    found.append(Contender("AIMD", "on errors", lambda _: Aimd()))
    found += [Contender("hindsight", f"{top} - 1.5 o", _falling(top)) for top in _TOPS]
    found += [
        Contender("hindsight, abort", f"{calm}/{busy} at 14", _two_levels(calm, busy))
        for calm, busy in _PAIRS
    ]
    found += [Contender("oracle", f"R = {top}", _oracle(top, spec)) for top in _RUNNING]
    for level in LEVELS:
        for abort in (True, False):
            family = "Backhaul" if abort else "Backhaul, no abort"
            name = f"target {level:.0%}"
            found.append(Contender(family, name, _backhaul(level, abort, spec), level))
        name = f"target {level:.0%}"
        found.append(Contender("Backhaul, warm", name, _warm(level, True, spec), level))
        no_abort = _warm(level, False, spec)
        gaps = ("idle gaps",)
        found.append(Contender("Backhaul, no abort, warm", name, no_abort, level, gaps))
        alone = _engine_only(level, spec)
        found.append(Contender("Backhaul, engine only", name, alone, level, ("waves",)))
    return found


def _static(cap: int) -> Callable[[Trace], Policy]:
    return lambda _: StaticCap(cap)


def _falling(top: int) -> Callable[[Trace], Policy]:
    return lambda _: FallingCap(top)


def _two_levels(calm: int, busy: int) -> Callable[[Trace], Policy]:
    return lambda _: TwoLevels(calm, busy)


def _oracle(top: int, spec: EngineSpec) -> Callable[[Trace], Policy]:
    return lambda trace: Oracle(trace, spec, top)


def _backhaul(level: float, abort: bool, spec: EngineSpec) -> Callable[[Trace], Policy]:
    settings = GateSettings(target=level, highest=spec.max_num_seqs - _SPARE_SLOTS, can_abort=abort)
    return lambda trace: Backhaul(settings, trace.seed)


def _engine_only(level: float, spec: EngineSpec) -> Callable[[Trace], Policy]:
    settings = GateSettings(target=level, highest=spec.max_num_seqs - _SPARE_SLOTS, can_abort=True)
    return lambda trace: EngineOnly(settings, trace.seed)


def _warm(level: float, abort: bool, spec: EngineSpec) -> Callable[[Trace], Policy]:
    """The gate after a run on other traffic of the same kind: as it is on any but its first day."""
    settings = GateSettings(target=level, highest=spec.max_num_seqs - _SPARE_SLOTS, can_abort=abort)

    def make(trace: Trace) -> Policy:
        before = TRACES[trace.name](trace.seed + 1000)
        first = Backhaul(settings, before.seed)
        World(before, spec).run(first)
        later_s = before.duration_s + 1
        return Backhaul(settings, trace.seed, gate=first.gate, later_s=later_s)

    return make


def batch_alone(spec: EngineSpec) -> float:
    """Tokens a second of a full engine without real-time calls."""
    silence = Trace("silence", 0, _ALONE_S, ())
    samples = World(silence, spec).run(StaticCap(spec.max_num_seqs))
    return samples.batch_tokens / _ALONE_S


def run(trace: str, seed: int, number: int | None) -> Samples:
    """One run: of the contender with that number, or of real-time alone."""
    spec = EngineSpec()
    made = TRACES[trace](seed)
    if number is None:
        return World(made, spec, batch=False).run(StaticCap(0))
    return World(made, spec).run(contenders(spec)[number].make(made))


def run_all(
    traces: Sequence[str], seeds: Sequence[int] = SEEDS, families: Iterable[str] | None = None
) -> list[Score]:
    """All runs, on all cores; one score for each contender and trace."""
    spec = EngineSpec()
    everybody = contenders(spec)
    wanted = set(families) if families is not None else {c.family for c in everybody}
    numbers = [None, *(i for i, c in enumerate(everybody) if c.family in wanted)]
    jobs = [
        (trace, seed, number)
        for trace in traces
        for number in numbers
        if number is None or trace in (everybody[number].traces or traces)
        for seed in seeds
    ]
    with Pool(os.cpu_count()) as pool:
        samples = dict(zip(jobs, pool.starmap(run, jobs, chunksize=1), strict=True))
    full = batch_alone(spec)
    scores = []
    for trace in traces:
        alone = [samples[trace, seed, None] for seed in seeds]
        idle = sum(idle_share(TRACES[trace](seed), spec) for seed in seeds) / len(seeds)
        blank = Contender("alone", "no batch", lambda _: StaticCap(0))
        scores.append(_score(trace, blank, alone, alone, full * idle))
        for number in numbers[1:]:
            if (trace, seeds[0], number) not in samples:
                continue
            runs = [samples[trace, seed, number] for seed in seeds]
            scores.append(_score(trace, everybody[number or 0], runs, alone, full * idle))
    return scores


def best(scores: Iterable[Score], trace: str, family: str, level: float) -> Score | None:
    """The family's member with the most batch tokens among those that keep the level."""
    fit = [
        score
        for score in scores
        if score.trace == trace
        and score.family == family
        and score.over_alone <= level
        and score.level in (None, level)
    ]
    return max(fit, key=lambda score: score.tokens_s, default=None)


def _score(
    trace: str, who: Contender, runs: list[Samples], alone: list[Samples], room: float
) -> Score:
    """True percentiles over the raw samples of all seeds together."""
    ttfts = [ttft for run in runs for ttft in run.ttfts]
    alone_p99 = percentile((ttft for run in alone for ttft in run.ttfts), 0.99)
    p99 = percentile(ttfts, 0.99)
    seconds = sum(run.duration_s for run in runs)
    tokens_s = sum(run.batch_tokens for run in runs) / seconds
    made = sum(run.batch_tokens + run.wasted_tokens for run in runs)
    return Score(
        trace=trace,
        family=who.family,
        name=who.name,
        level=who.level,
        p50_ms=percentile(ttfts, 0.5) * 1e3,
        p99_ms=p99 * 1e3,
        over_alone=p99 / alone_p99 - 1,
        gap_p99_ms=weighted_percentile((gap for run in runs for gap in run.gaps), 0.99) * 1e3,
        tokens_s=tokens_s,
        efficiency=tokens_s / room,
        wasted=sum(run.wasted_tokens for run in runs) / made if made else 0.0,
        each_over=tuple(
            percentile(run.ttfts, 0.99) / percentile(one.ttfts, 0.99) - 1
            for run, one in zip(runs, alone, strict=True)
        ),
    )
