"""Lines of one stored prompt against the same lines with it inlined: size, CPU by role, speed."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI

from tests.bench.pipeline import ROLES, RoleWatch
from tests.bench.prompt_files import (
    MESSAGES,
    MODEL_CONFIG,
    SLUG,
    SYSTEM_BYTES,
    inlined_file,
    prompt_file,
)
from tests.support.batches import wait_for_end
from tests.support.prompt_api import Prompts
from tests.support.prompts import Version
from tests.support.stack import Stack, running, start_simulator, start_stack

#: The largest batch, run once.
MOST_LINES = 50_000
#: Pairs of rounds, one of each kind, first the one and then the other. On a machine with
#: neighbours the CPU of a line varies by a third, so it is the median pair that tells.
PAIRS = 8
_WARM_LINES = 2_000


@dataclass(frozen=True)
class Round:
    """What one batch took: the CPU of each role in ms a line, and lines a second."""

    cpu_ms: dict[str, float]
    lines_per_s: float

    @property
    def all_cpu_ms(self) -> float:
        """That of all roles."""
        return sum(self.cpu_ms.values())


@dataclass(frozen=True)
class PromptFigures:
    """Both kinds of file beside each other; CPU is in ms a line, the median of the rounds.

    worker_ratio: the batch-worker's CPU for a prompt line in that for an inlined one, ratio: that
    of all roles; both of the median pair.
    """

    lines: int
    prompt_bytes: int
    inlined_bytes: int
    prompt_cpu_ms: dict[str, float]
    inlined_cpu_ms: dict[str, float]
    prompt_lines_per_s: float
    inlined_lines_per_s: float
    most_lines_per_s: float
    worker_ratio: float
    ratio: float

    @property
    def smaller(self) -> float:
        """How many times smaller the prompt file is."""
        return self.inlined_bytes / self.prompt_bytes

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {**asdict(self), "smaller": self.smaller}

    def table(self) -> str:
        """For people."""
        named_ms, inlined_ms = self.prompt_cpu_ms, self.inlined_cpu_ms
        rows = [(role, named_ms[role], inlined_ms[role]) for role in ROLES]
        rows.append(("all roles", sum(named_ms.values()), sum(inlined_ms.values())))
        return "\n".join(
            [
                f"{self.lines} lines of one prompt of {SYSTEM_BYTES} bytes; CPU in ms/line, "
                f"medians of {PAIRS} rounds each",
                "",
                f"  {'':14} {'by slug':>9} {'inlined':>9} {'ratio':>7}",
                *(
                    f"  {name:14} {named:9.3f} {inlined:9.3f} {named / inlined:7.2f}"
                    for name, named, inlined in rows
                ),
                f"  median pair: {self.worker_ratio:.3f} for the batch-worker, "
                f"{self.ratio:.3f} for all roles",
                "",
                f"  input file     {self.prompt_bytes / 1e6:.1f} MB, inlined "
                f"{self.inlined_bytes / 1e6:.1f} MB: {self.smaller:.1f} x smaller",
                f"  lines/s        {self.prompt_lines_per_s:.0f}, "
                f"inlined {self.inlined_lines_per_s:.0f}",
                f"  {MOST_LINES} lines    by slug: {self.most_lines_per_s:.0f} lines/s "
                "from upload to completed",
            ]
        )


def measure_prompts(lines: int, most: int = MOST_LINES) -> PromptFigures:
    """Starts everything and runs both files in turns."""
    simulator = start_simulator()
    with running(simulator), tempfile.TemporaryDirectory() as folder:
        stack = start_stack(Path(folder) / "data", "--upstream", simulator.base_url, within_s=180)
        with running(stack), OpenAI(base_url=stack.base_url, api_key=stack.api_key) as client:
            Prompts(client).create(SLUG, Version(MESSAGES, MODEL_CONFIG))
            for make in (inlined_file, prompt_file):
                _round(stack, client, make, _WARM_LINES)
            pairs = [_pair(stack, client, lines, number) for number in range(PAIRS)]
            named, inlined = ([pair[kind] for pair in pairs] for kind in (0, 1))
            return PromptFigures(
                lines=lines,
                prompt_bytes=len(prompt_file(lines)),
                inlined_bytes=len(inlined_file(lines)),
                prompt_cpu_ms=_medians(named),
                inlined_cpu_ms=_medians(inlined),
                prompt_lines_per_s=statistics.median(r.lines_per_s for r in named),
                inlined_lines_per_s=statistics.median(r.lines_per_s for r in inlined),
                most_lines_per_s=_round(stack, client, prompt_file, most).lines_per_s,
                worker_ratio=statistics.median(
                    n.cpu_ms["batch-worker"] / i.cpu_ms["batch-worker"] for n, i in pairs
                ),
                ratio=statistics.median(n.all_cpu_ms / i.all_cpu_ms for n, i in pairs),
            )


def _pair(stack: Stack, client: OpenAI, lines: int, number: int) -> tuple[Round, Round]:
    """A round by slug and one inlined; which is first changes from pair to pair."""
    if number % 2:
        named = _round(stack, client, prompt_file, lines)
        return named, _round(stack, client, inlined_file, lines)
    inlined = _round(stack, client, inlined_file, lines)
    return _round(stack, client, prompt_file, lines), inlined


def _round(stack: Stack, client: OpenAI, make: Callable[[int], bytes], lines: int) -> Round:
    data = make(lines)
    with RoleWatch(stack) as watch:
        began = time.monotonic()
        file = client.files.create(file=("in.jsonl", data), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        ended = wait_for_end(client, batch.id, within_s=600, poll_s=0.2)
        took_s = time.monotonic() - began
    counts = ended.request_counts
    if counts is None or (ended.status, counts.completed) != ("completed", lines):
        raise RuntimeError(f"the batch ended as {ended.status}; its figures mean nothing")
    cpu_ms = {role: cpu / lines * 1000 for role, cpu in watch.cpu_s.items()}
    return Round(cpu_ms, lines / took_s)


def _medians(rounds: list[Round]) -> dict[str, float]:
    return {role: statistics.median(r.cpu_ms[role] for r in rounds) for role in ROLES}
