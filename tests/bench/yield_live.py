"""The yield bench against live processes: `make bench-yield ARGS=--live`.

python -m tests.bench.yield_live [--seconds N] [--seed N] [--speed X] [--mode NAME ...]

The engine of the virtual bench behind `backhaul simulate --engine`, a whole `backhaul up` before
it, and the beginning of the wave trace over HTTP, streamed. One run for each mode:

    alone          real-time calls through the lane, no batch
    naive          as many batch calls as the calibration's, whatever happens
    Backhaul       the gate, told +5 %
    direct alone   real-time calls straight to the engine, no batch
    direct         so, and the gate sees nothing but the engine's page

--speed slows engine and trace down (0.5: half as fast) where a machine can't carry them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from openai import OpenAI

from streams.domain.gate.gate import GateSettings
from streams.simulator.engine import EngineSpec
from streams.simulator.engine_lengths import NAIVE_CALLS
from tests.bench.live_drive import LiveSamples, chat_body, drive
from tests.bench.live_watch import Watched, reaction, watch
from tests.bench.yield_gate import Backhaul
from tests.bench.yield_policies import StaticCap
from tests.bench.yield_runs import batch_alone
from tests.bench.yield_traces import Arrival, Trace, batch_lines, waves
from tests.bench.yield_world import World, idle_share, percentile
from tests.support.batches import submit
from tests.support.stack import Simulator, Stack, running, start_simulator, start_stack
from tests.support.waiting import eventually

MODES = ("alone", "naive", "Backhaul", "direct alone", "direct")
_POOL = "engine"
_TARGET = 0.05
_SPARE_SLOTS = 16
_LINES = 15_000
#: Batch runs so long before the trace begins, and the burst that is timed comes after so long.
_LEAD_S, _QUIET_S, _BURST_S, _BURST_RPS = 5.0, 12.0, 12.0, 15


@dataclass(frozen=True, slots=True)
class Score:
    """One run, in seconds and tokens of the engine's time; down_s, up_s in real time."""

    mode: str
    calls: int
    errors: int
    ttft_p50_s: float
    ttft_p99_s: float
    gap_p99_s: float
    tokens_s: float
    efficiency: float
    down_s: float
    up_s: float
    late_s: float
    load: float


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the modes and prints one line each, and the same in virtual time."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.yield_live",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=240.0, help="of the trace (240)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--mode", action="append", choices=MODES, help="only these")
    parser.add_argument("--out", type=Path, default=Path("build/bench-yield"))
    options = parser.parse_args(argv)
    trace = _cut(waves(options.seed), options.seconds)
    print(_HEAD.format(seconds=options.seconds, calls=len(trace.arrivals), cores=os.cpu_count()))
    scores = []
    for mode in options.mode or MODES:
        score = measure(mode, trace, options.speed)
        scores.append(score)
        print(_row(score, scores), flush=True)
    print("\nThe same trace in virtual time:\n" + virtual(trace))
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps([asdict(score) for score in scores], indent=1)
    (options.out / "live.json").write_text(text, encoding="utf-8")
    return 1 if any(score.errors for score in scores) else 0


_HEAD = (
    "waves, live: {seconds:.0f} s, {calls} real-time calls, {cores} cores; TTFT and gaps in ms\n"
    "mode           TTFT 50  TTFT 99    over   gap 99  tokens/s     HE  down s   up s   late  load"
)


def measure(mode: str, trace: Trace, speed: float) -> Score:
    """One run of one mode."""
    engine = json.dumps({"speed": speed})
    simulator = start_simulator("--engine", engine, "--completion-tokens", "100000")
    with running(simulator), tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "upstreams.yaml"
        table.write_text(yaml.safe_dump(_table(mode, simulator)), "utf-8")
        stack = start_stack(Path(folder) / "data", "--upstreams", str(table), within_s=180)
        with running(stack):
            return asyncio.run(_run(mode, trace, speed, simulator, stack))


def _table(mode: str, simulator: Simulator) -> dict[str, Any]:
    settings: Any = {
        "target": _TARGET,
        "highest": EngineSpec().max_num_seqs - _SPARE_SLOTS,
        "abort": True,
        "metrics_url": f"{simulator.root}/metrics",
    }
    calls = 400
    if mode == "naive":
        settings, calls = "off", NAIVE_CALLS
    upstream = {
        "name": _POOL,
        "base_url": simulator.base_url,
        "models": ["sim"],
        "max_in_flight": calls,
        "yield": settings,
    }
    return {"upstreams": [upstream]}


async def _run(mode: str, trace: Trace, speed: float, simulator: Simulator, stack: Stack) -> Score:
    direct = mode.startswith("direct")
    url = simulator.base_url if direct else stack.base_url
    watched = Watched()
    watching = asyncio.create_task(watch(stack.info["kafka"], _POOL, watched))
    with OpenAI(base_url=stack.base_url, api_key=stack.api_key) as client:
        batch_id = None
        if not mode.endswith("alone"):
            batch_id = await asyncio.to_thread(_submit, client, trace.seed)
            await _all_running(client, batch_id)
        before = await _tokens(client, batch_id)
        samples = await drive(url, stack.api_key, trace.arrivals, trace.duration_s, speed)
        tokens = await _tokens(client, batch_id) - before
        burst = await _burst(url, stack.api_key, speed) if batch_id else None
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    return _score(mode, trace, samples, tokens, watched, burst)


def _submit(client: OpenAI, seed: int) -> str:
    next_line = batch_lines(seed)
    lines = [
        {
            "custom_id": f"line-{n}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": chat_body(*next_line()),
        }
        for n in range(_LINES)
    ]
    return submit(client, lines).id


async def _all_running(client: OpenAI, batch_id: str) -> None:
    """Until the first lines are in: from then on the engine is as full as it is let be."""

    async def begun() -> int:
        return await _tokens(client, batch_id)

    await eventually(begun, within_s=120)
    await asyncio.sleep(_LEAD_S)


async def _tokens(client: OpenAI, batch_id: str | None) -> int:
    if batch_id is None:
        return 0
    batch = await asyncio.to_thread(client.batches.retrieve, batch_id)
    return batch.usage.output_tokens if batch.usage else 0


async def _burst(url: str, key: str, speed: float) -> LiveSamples:
    """A burst out of silence, to time how fast batch makes way and comes back."""
    await asyncio.sleep(_QUIET_S)
    count = int(_BURST_S * _BURST_RPS)
    arrivals = [Arrival(n / _BURST_RPS, 300, 100) for n in range(count)]
    samples = await drive(url, key, arrivals, _BURST_S, speed)
    await asyncio.sleep(_QUIET_S)
    return samples


def _score(
    mode: str,
    trace: Trace,
    samples: LiveSamples,
    tokens: int,
    watched: Watched,
    burst: LiveSamples | None,
) -> Score:
    room = batch_alone(EngineSpec()) * idle_share(trace, EngineSpec())
    down_s = up_s = float("nan")
    if burst is not None and mode != "naive":
        down_s, up_s = reaction(watched, burst.first_sent_s, burst.last_end_s)
    tokens_s = tokens / trace.duration_s
    return Score(
        mode=mode,
        calls=len(samples.ttfts),
        errors=samples.errors + (burst.errors if burst else 0),
        ttft_p50_s=percentile(samples.ttfts, 0.5),
        ttft_p99_s=percentile(samples.ttfts, 0.99),
        gap_p99_s=percentile(samples.gaps, 0.99),
        tokens_s=tokens_s,
        efficiency=tokens_s / room,
        down_s=down_s,
        up_s=up_s,
        late_s=samples.late_s,
        load=os.getloadavg()[0],
    )


def virtual(trace: Trace) -> str:
    """The same trace under the same policies in virtual time, for comparison."""
    spec = EngineSpec()
    room = batch_alone(spec) * idle_share(trace, spec)
    settings = GateSettings(
        target=_TARGET, highest=spec.max_num_seqs - _SPARE_SLOTS, can_abort=True
    )
    alone = World(trace, spec, batch=False).run(StaticCap(0))
    runs = {
        "alone": alone,
        "naive": World(trace, spec).run(StaticCap(NAIVE_CALLS)),
        "Backhaul": World(trace, spec).run(Backhaul(settings, trace.seed)),
    }
    base = percentile(alone.ttfts, 0.99)
    rows = []
    for name, run in runs.items():
        p50, p99 = percentile(run.ttfts, 0.5), percentile(run.ttfts, 0.99)
        tokens_s = run.batch_tokens / trace.duration_s
        rows.append(
            f"  {name:13s} TTFT p50 {p50 * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms "
            f"({p99 / base - 1:+.1%}), {tokens_s:.0f} tokens/s, HE {tokens_s / room:.3f}"
        )
    return "\n".join(rows)


def _cut(trace: Trace, seconds: float) -> Trace:
    arrivals = tuple(arrival for arrival in trace.arrivals if arrival.at_s < seconds)
    return Trace(trace.name, trace.seed, seconds, arrivals)


def _row(score: Score, scores: Sequence[Score]) -> str:
    base_mode = "direct alone" if score.mode.startswith("direct") else "alone"
    base = next((s for s in scores if s.mode == base_mode), None)
    over = f"{score.ttft_p99_s / base.ttft_p99_s - 1:+.1%}" if base else "?"
    return (
        f"{score.mode:13s} {score.ttft_p50_s * 1e3:8.0f} {score.ttft_p99_s * 1e3:8.0f} {over:>7s} "
        f"{score.gap_p99_s * 1e3:8.0f} {score.tokens_s:9.0f} {score.efficiency:6.3f} "
        f"{score.down_s:7.2f} {score.up_s:6.2f} {score.late_s * 1e3:6.0f} {score.load:5.1f}"
        + (f"  {score.errors} ERRORS" if score.errors else "")
    )


if __name__ == "__main__":
    sys.exit(main())
