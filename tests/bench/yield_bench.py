"""`make bench-yield`: what batch may take beside real-time calls, and what that costs them.

python -m tests.bench.yield_bench [--out FOLDER] [--first SEED] [--seeds N]
                                  [--trace NAME] [--family NAME]

Everything is in virtual time and seeded: the same figures on every machine. For the method see
docs/politeness.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from streams.domain.gate.gate import GateSettings
from streams.simulator.engine import EngineSpec
from streams.simulator.engine_lengths import NAIVE_CALLS
from tests.bench import yield_live, yield_page, yield_plot, yield_stability
from tests.bench.yield_gate import Backhaul
from tests.bench.yield_policies import StaticCap
from tests.bench.yield_runs import LEVELS, SEEDS, Score, best, run_all
from tests.bench.yield_traces import TRACES, steady
from tests.bench.yield_world import Samples, World, percentile, weighted_percentile

_FAMILIES = (
    "static",
    "AIMD",
    "naive",
    "hindsight",
    "hindsight, abort",
    "Backhaul",
    "Backhaul, warm",
    "Backhaul, no abort",
    "Backhaul, no abort, warm",
    "Backhaul, engine only",
    "oracle",
)


def main() -> int:
    """Runs, prints, and writes the page, the plot and the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.yield_bench", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench-yield"))
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many")
    parser.add_argument("--first", type=int, default=SEEDS[0], help="the first of them")
    parser.add_argument("--family", choices=_FAMILIES, action="append", help="only these")
    parser.add_argument("--trace", choices=tuple(TRACES), action="append", help="only these")
    parser.add_argument("--live", action="store_true", help="see tests/bench/yield_live.py")
    if "--live" in sys.argv[1:]:
        return yield_live.main([arg for arg in sys.argv[1:] if arg != "--live"])
    options = parser.parse_args()
    started = time.monotonic()
    traces = options.trace or list(TRACES)
    print(calibration(), flush=True)
    scores: list[Score] = []
    for trace in traces:
        seeds = range(options.first, options.first + options.seeds)
        scores += run_all([trace], seeds, options.family)
        print(table(scores, trace, options.family or _FAMILIES), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    figures = [asdict(score) for score in scores]
    (options.out / "yield.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    timelines = {trace: timeline(trace) for trace in traces}
    page = yield_page.page(scores, traces, timelines)
    (options.out / "yield.html").write_text(page, encoding="utf-8")
    yield_plot.write(options.out / "yield.png", scores, traces, timelines)
    yield_stability.write(options.out / "stability.png")
    print(f"\n{time.monotonic() - started:.0f} s; page, plots and figures: {options.out}")
    return 0


def calibration() -> str:
    """The engine beside what was measured on the real one."""
    lines = ["The engine at 15 requests a second, and a real one (ms): TTFT p50/p95, gap p95"]
    for name, calls, real in (("alone", 0, (72, 92, 24)), ("naive", NAIVE_CALLS, (278, 597, 66))):
        runs = [
            World(steady(15, 300, seed), EngineSpec()).run(StaticCap(calls)) for seed in range(1, 6)
        ]
        ttfts = [
            ttft for run in runs for at, ttft in zip(run.arrived, run.ttfts, strict=True) if at > 20
        ]
        gap = weighted_percentile((gap for run in runs for gap in run.gaps), 0.95)
        lines.append(
            f"  {name:6s} {percentile(ttfts, 0.5) * 1e3:4.0f}/{percentile(ttfts, 0.95) * 1e3:.0f}"
            f" {gap * 1e3:4.0f}    real {real[0]}/{real[1]} {real[2]}"
        )
    return "\n".join(lines)


def table(scores: Sequence[Score], trace: str, families: Sequence[str] = _FAMILIES) -> str:
    """The best of each family at each level, on one trace."""
    alone = next(s for s in scores if s.trace == trace and s.family == "alone")
    lines = [
        f"\n{trace}: alone P99 TTFT {alone.p99_ms:.1f} ms, gap P99 {alone.gap_p99_ms:.1f} ms",
        f"{'at most':8s} {'family':19s} {'best':12s} {'P99':>7s} {'each seed':>20s}"
        f" {'tokens/s':>9s} {'HE':>6s} {'gap P99':>8s} {'wasted':>7s}",
    ]
    for level in LEVELS:
        for family in families:
            score = best(scores, trace, family, level)
            over = next(
                (s for s in scores if (s.trace, s.family, s.level) == (trace, family, level)), None
            )
            lines.append(_row(level, family, score, over))
    return "\n".join(lines)


def _row(level: float, family: str, score: Score | None, over: Score | None) -> str:
    start = f"+{level:<7.0%} {family:19s}"
    shown = score or over
    if shown is None:
        return f"{start} none keeps the level"
    each = " ".join(f"{x:+.1%}" for x in shown.each_over)
    missed = "" if score else "  above the level"
    return (
        f"{start} {shown.name:12s} {shown.over_alone:+7.1%} {each:>20s} {shown.tokens_s:9.0f}"
        f" {shown.efficiency:6.3f} {shown.gap_p99_ms:8.1f} {shown.wasted:7.1%}{missed}"
    )


def timeline(trace: str) -> Samples:
    """One run of Backhaul at +5 %, for the picture of how it follows real-time calls."""
    settings = GateSettings(target=LEVELS[0], highest=368, can_abort=True)
    return World(TRACES[trace](1), EngineSpec()).run(Backhaul(settings, 1))


if __name__ == "__main__":
    sys.exit(main())
