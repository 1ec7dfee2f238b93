"""What the real-time lane adds to the time to first token, against calling the upstream directly.

Both are asked in one run, in turns, with the same seeded arrivals: streamed chat completions, 20 a
second, from an upstream whose first token takes 50 ms and each later one 10 ms.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.stack import running, start_simulator, start_stack

RATE_RPS = 20.0
ROUND_S = 8.0
ROUNDS = 4
FIRST_TOKEN_S, TOKEN_S, TOKENS = 0.05, 0.01, 24
_BODY = {
    "model": "sim",
    "stream": True,
    "messages": [{"role": "user", "content": "Tell me of the sea."}],
}


@dataclass
class Samples:
    """Seconds: to the first event; between arrivals of events after it; to the end."""

    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)


@dataclass
class Figures:
    """Milliseconds, of the direct calls and of those through the lane; load: of the machine."""

    calls: int
    load: float
    direct: dict[str, float]
    lane: dict[str, float]

    @property
    def added(self) -> dict[str, float]:
        """What the lane adds."""
        return {name: self.lane[name] - self.direct[name] for name in self.lane}

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {**asdict(self), "added": self.added}

    def table(self) -> str:
        """For people."""
        rows = [
            f"real-time lane: {self.calls} streamed calls each way, {RATE_RPS:.0f} a second, in "
            f"turns; {os.cpu_count()} cores, load {self.load:.1f}",
            "",
            f"  {'ms':18} {'direct':>9} {'lane':>9} {'added':>9}",
        ]
        rows += [
            f"  {name:18} {self.direct[name]:9.1f} {self.lane[name]:9.1f} {self.added[name]:9.1f}"
            for name in self.lane
        ]
        return "\n".join([*rows, "  (to hold: ttft p50 <= 10 added, ttft p99 <= 30 added)"])


def measure_lane(rounds: int = ROUNDS) -> Figures:
    """Starts an upstream and a whole Backhaul, and asks both."""
    with tempfile.TemporaryDirectory() as folder:
        simulator = start_simulator(
            *("--latency", str(FIRST_TOKEN_S), "--token-time-s", str(TOKEN_S)),
            *("--completion-tokens", str(TOKENS)),
        )
        with running(simulator):
            stack = start_stack(Path(folder), "--upstream", simulator.base_url)
            with running(stack):
                return asyncio.run(
                    _measured(simulator.base_url, stack.base_url, stack.api_key, rounds)
                )


async def _measured(direct_url: str, lane_url: str, key: str, rounds: int) -> Figures:
    direct, lane = Samples(), Samples()
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        # Connections, caches, the first partition of everything.
        for url in (direct_url, lane_url):
            await _round(session, url, Samples(), random.Random(1), 2.0)
        for number in range(rounds):
            for url, samples in ((direct_url, direct), (lane_url, lane)):
                await _round(session, url, samples, random.Random(number), ROUND_S)
    load = os.getloadavg()[0]
    return Figures(len(lane.ttft), load, _summary(direct), _summary(lane))


async def _round(
    session: aiohttp.ClientSession,
    url: str,
    samples: Samples,
    arrivals: random.Random,
    seconds: float,
) -> None:
    began = time.perf_counter()
    due = began
    async with asyncio.TaskGroup() as calls:
        while (due := due + arrivals.expovariate(RATE_RPS)) < began + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            calls.create_task(_call(session, url, samples))


async def _call(session: aiohttp.ClientSession, url: str, samples: Samples) -> None:
    began = last = time.perf_counter()
    first = True
    async with session.post(f"{url}/chat/completions", json=_BODY) as answer:
        answer.raise_for_status()
        whole = b""
        async for chunk in answer.content.iter_any():
            now = time.perf_counter()
            (samples.ttft if first else samples.gaps).append(now - last)
            first, last = False, now
            whole += chunk
    if b"[DONE]" not in whole:
        raise AssertionError("an answer was cut off")
    samples.whole.append(time.perf_counter() - began)


def _summary(samples: Samples) -> dict[str, float]:
    return {
        "ttft p50": _percentile(samples.ttft, 0.50),
        "ttft p95": _percentile(samples.ttft, 0.95),
        "ttft p99": _percentile(samples.ttft, 0.99),
        "between events p50": _percentile(samples.gaps, 0.50),
        "between events p95": _percentile(samples.gaps, 0.95),
        "whole answer p50": _percentile(samples.whole, 0.50),
    }


def _percentile(values: list[float], share: float) -> float:
    """The smallest of the values that so many are not above, in ms."""
    ordered = sorted(values)
    return 1000 * ordered[math.ceil(share * len(ordered)) - 1]


if __name__ == "__main__":
    print(measure_lane().table())
