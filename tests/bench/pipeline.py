"""The whole pipeline against a bare client loop: CPU per line by role, speed, memory, latency."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from openai import OpenAI

from tests.support.batches import chat_line, jsonl, submit, wait_for_end
from tests.support.stack import Simulator, Stack, running, start_simulator, start_stack

ROLES = ("gateway", "controller", "file-worker", "batch-worker", "collector")
CONCURRENCY = 64


@dataclass
class Figures:
    """What one run measured. CPU is user + system time, in ms a line; memory is in MiB."""

    lines: int
    bare_cpu_ms: float
    bare_lines_per_s: float
    role_cpu_ms: dict[str, float]
    lines_per_s: float
    peak_mib: dict[str, float]
    create_ms: dict[str, float] = field(default_factory=dict)
    small_batch_s: dict[str, float] = field(default_factory=dict)

    @property
    def all_roles_cpu_ms(self) -> float:
        """All of Backhaul's roles together; the broker and the simulator are not ours."""
        return sum(self.role_cpu_ms.values())

    @property
    def ratio(self) -> float:
        """All roles together against the bare loop."""
        return self.all_roles_cpu_ms / self.bare_cpu_ms

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {**asdict(self), "all_roles_cpu_ms": self.all_roles_cpu_ms, "ratio": self.ratio}

    def table(self) -> str:
        """For people."""
        rows = [
            f"{self.lines} lines, upstream answers at once, {CONCURRENCY} calls in flight",
            "",
            f"  {'':14} {'CPU ms/line':>12} {'peak MiB':>9}",
            f"  {'bare loop':14} {self.bare_cpu_ms:12.3f}",
            *(
                f"  {role:14} {self.role_cpu_ms[role]:12.3f} {self.peak_mib[role]:9.0f}"
                for role in ROLES
            ),
            f"  {'all roles':14} {self.all_roles_cpu_ms:12.3f}"
            f"   = {self.ratio:.2f} x the bare loop",
            "",
            f"  lines/s        {self.lines_per_s:8.0f}   (bare loop {self.bare_lines_per_s:.0f})",
            f"  create         p50 {self.create_ms['p50']:.1f} ms, "
            f"p99 {self.create_ms['p99']:.1f} ms",
            f"  10-line batch  p50 {self.small_batch_s['p50']:.2f} s, p95 "
            f"{self.small_batch_s['p95']:.2f} s from POST to completed",
        ]
        return "\n".join(rows)


class RoleWatch:
    """CPU seconds and peak memory of each role while a block runs."""

    def __init__(self, stack: Stack) -> None:
        self._processes = {r: [psutil.Process(p) for p in stack.pids(r)] for r in ROLES}
        self.cpu_s: dict[str, float] = {}
        self.peak_bytes = dict.fromkeys(ROLES, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> RoleWatch:
        self._before = self._cpu()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.cpu_s = {role: total - self._before[role] for role, total in self._cpu().items()}

    def _cpu(self) -> dict[str, float]:
        return {
            role: sum(t.user + t.system for t in (p.cpu_times() for p in processes))
            for role, processes in self._processes.items()
        }

    def _sample(self) -> None:
        while not self._stop.wait(0.1):
            for role, processes in self._processes.items():
                rss = sum(p.memory_info().rss for p in processes)
                self.peak_bytes[role] = max(self.peak_bytes[role], rss)


def measure_pipeline(lines: int) -> Figures:
    """Starts everything, runs the lines both ways, and measures latencies on the idle system."""
    simulator = start_simulator()
    with running(simulator), tempfile.TemporaryDirectory() as folder:
        stack = start_stack(Path(folder) / "data", "--upstream", simulator.base_url, within_s=180)
        with running(stack), OpenAI(base_url=stack.base_url, api_key=stack.api_key) as client:
            wait_for_end(client, submit(client, _lines("warm", 500)).id, within_s=120)
            bare = _bare(Path(folder) / "lines.jsonl", lines, simulator)
            figures = _run(stack, client, lines, bare)
            figures.create_ms = _create_latency(client)
            figures.small_batch_s = _small_batches(client)
            return figures


def _lines(run: str, count: int) -> list[dict[str, Any]]:
    return [chat_line(f"{run}-{n}", text="Say hello. " * 20) for n in range(count)]


def _bare(path: Path, lines: int, simulator: Simulator) -> dict[str, float]:
    path.write_bytes(jsonl(_lines("bare", lines)))
    command = [sys.executable, "-m", "tests.bench.bare_loop", str(path), simulator.base_url]
    done = subprocess.run(
        [*command, str(CONCURRENCY)], check=True, capture_output=True, text=True, timeout=600
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _run(stack: Stack, client: OpenAI, lines: int, bare: dict[str, float]) -> Figures:
    submitted = _lines("bench", lines)
    with RoleWatch(stack) as watch:
        began = time.monotonic()
        batch = submit(client, submitted)
        ended = wait_for_end(client, batch.id, within_s=600, poll_s=0.2)
        took_s = time.monotonic() - began
    if ended.status != "completed" or ended.error_file_id is not None:
        raise RuntimeError(f"the batch ended as {ended.status}; its figures mean nothing")
    return Figures(
        lines=lines,
        bare_cpu_ms=bare["cpu_s"] / lines * 1000,
        bare_lines_per_s=lines / bare["wall_s"],
        role_cpu_ms={role: cpu / lines * 1000 for role, cpu in watch.cpu_s.items()},
        lines_per_s=lines / took_s,
        peak_mib={role: peak / (1 << 20) for role, peak in watch.peak_bytes.items()},
    )


def _create_latency(client: OpenAI, count: int = 200) -> dict[str, float]:
    file = client.files.create(file=("one.jsonl", jsonl(_lines("create", 1))), purpose="batch")
    took = []
    for _ in range(count):
        began = time.monotonic()
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        took.append((time.monotonic() - began) * 1000)
    wait_for_end(client, batch.id, within_s=120)
    cuts = statistics.quantiles(took, n=100)
    return {"p50": cuts[49], "p99": cuts[98]}


def _small_batches(client: OpenAI, count: int = 20) -> dict[str, float]:
    file = client.files.create(file=("ten.jsonl", jsonl(_lines("small", 10))), purpose="batch")
    took = []
    for _ in range(count):
        began = time.monotonic()
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        wait_for_end(client, batch.id, within_s=60, poll_s=0.01)
        took.append(time.monotonic() - began)
    cuts = statistics.quantiles(took, n=20)
    return {"p50": cuts[9], "p95": cuts[18]}
