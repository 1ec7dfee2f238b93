"""Fault injection: what can be done to a running Backhaul, and the audit afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import uuid4

import httpx2
from openai import APIConnectionError, APIStatusError, OpenAI
from openai.types import Batch

from tests.support.batches import (
    ENDED,
    Results,
    chat_line,
    check_conservation,
    jsonl,
    results_of,
)
from tests.support.stack import BACKHAUL, Simulator, Stack
from tests.support.waiting import deadline_in

T = TypeVar("T")
ROLES = (
    *("controller", "file-worker", "batch-worker", "collector", "gateway"),
    *("realtime-worker", "meter"),
)
#: What each line meets at its attempts; most answer at once.
SCRIPTS: tuple[str | None, ...] = (*[None] * 14, "503,ok", "429,ok", "cut,ok", "400", "garbage,ok")


@dataclass
class Fault:
    """Something bad that is done to the stack; name is for reports."""

    name: str
    inflict: Callable[[Stack], None]


def kill_role(role: str) -> Fault:
    """kill -9 of one process of the role."""

    def inflict(stack: Stack) -> None:
        with contextlib.suppress(IndexError, ProcessLookupError):
            stack.kill(role)

    return Fault(f"kill -9 {role}", inflict)


def freeze_role(role: str, for_s: float) -> Fault:
    """SIGSTOP, longer than the session time-out, then SIGCONT: a zombie that wakes up."""

    def inflict(stack: Stack) -> None:
        with contextlib.suppress(IndexError, ProcessLookupError):
            pid = stack.pids(role)[0]
            os.kill(pid, signal.SIGSTOP)
            time.sleep(for_s)
            os.kill(pid, signal.SIGCONT)

    return Fault(f"freeze {role} for {for_s:g} s", inflict)


def kill_supervisor() -> Fault:
    """kill -9 of `backhaul up` itself, which takes everything with it; then up again."""
    return Fault("kill -9 backhaul up", lambda stack: stack.kill_supervisor_and_restart())


def all_faults(freeze_s: float) -> list[Fault]:
    """Every kind of fault once."""
    return [
        *(kill_role(role) for role in (*ROLES, "broker")),
        kill_supervisor(),
        *(freeze_role(role, freeze_s) for role in ("controller", "batch-worker", "collector")),
    ]


@dataclass
class Report:
    """What a round of chaos showed."""

    fault: str
    lines: int
    executed_again: int
    took_s: float
    trail: list[str] = field(default_factory=list)


def chaos_lines(run: str, count: int, rng: random.Random) -> list[dict[str, Any]]:
    """A batch's lines with errors mixed in, the same for the same seed."""
    return [chat_line(f"{run}-{n}", script=rng.choice(SCRIPTS)) for n in range(count)]


def patiently(call: Callable[[], T], within_s: float = 120) -> T:
    """Repeats a call while the gateway is being restarted."""
    deadline = deadline_in(within_s)
    while True:
        try:
            return call()
        except (APIConnectionError, APIStatusError, httpx2.TransportError) as error:
            if isinstance(error, APIStatusError) and error.status_code < 500:
                raise
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def client_of(stack: Stack) -> OpenAI:
    """A client for wherever the stack listens now."""
    return OpenAI(base_url=stack.base_url, api_key=stack.api_key, timeout=10, max_retries=0)


def run_round(
    stack: Stack, simulator: Simulator, faults: list[Fault], lines: int, rng: random.Random
) -> Report:
    """One batch with faults at random moments of its run, audited at the end."""
    run = f"chaos-{uuid4().hex[:10]}"
    submitted = chaos_lines(run, lines, rng)
    began = time.monotonic()
    with client_of(stack) as client:
        file = patiently(
            lambda: client.files.create(file=("in.jsonl", jsonl(submitted)), purpose="batch")
        )
        batch = patiently(
            lambda: client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                extra_headers={"Idempotency-Key": run},
            )
        )
    for fault in faults:
        time.sleep(rng.uniform(0.05, 2.0))
        fault.inflict(stack)
    with client_of(stack) as client:
        ended = _wait(client, batch.id, within_s=240)
        results = patiently(lambda: results_of(client, ended))
    check_conservation(ended, results, submitted)
    again = audit_upstream(simulator, run, submitted, results)
    return Report(" + ".join(f.name for f in faults), lines, again, time.monotonic() - began)


def audit_books(stack: Stack, within_s: float = 120) -> dict[str, Any]:
    """Waits until everything is billed; output files, ledger, sends and bill must be equal then.

    Returns what the command says in the end.
    """
    command = [BACKHAUL, "billing", "reconcile", "--json", "--data", str(stack.data_dir)]
    deadline = deadline_in(within_s)
    while True:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        objects = [json.loads(line) for line in ran.stdout.splitlines()]
        if ran.returncode == 0 and objects[-1]["on_its_way"] == 0:
            summary: dict[str, Any] = objects[-1]
            return summary
        wrong = [o for o in objects if o["object"] in ("difference", "line")]
        assert not wrong, wrong[:20]
        assert time.monotonic() < deadline, (ran.stdout[-2000:], ran.stderr[-2000:])
        time.sleep(0.5)


def audit_upstream(
    simulator: Simulator, run: str, submitted: list[dict[str, Any]], results: Results
) -> int:
    """Holds the files against the upstream's own counts; how many lines it answered again."""
    keys = simulator.requests()["keys"]
    final = {line["custom_id"] for line in results.output}
    again = 0
    for line in submitted:
        key = str(line["custom_id"])
        count = keys[key]
        if key in final:
            assert count["ok"] >= 1, f"{key} is in the output file, but was never answered"
        again += max(0, count["ok"] - 1)
    return again


def _wait(client: OpenAI, batch_id: str, within_s: float) -> Batch:
    deadline = deadline_in(within_s)
    while True:
        batch = patiently(lambda: client.batches.retrieve(batch_id))
        if batch.status in ENDED:
            return batch
        if time.monotonic() > deadline:
            raise AssertionError(f"not ended: {batch.status} {batch.request_counts}")
        time.sleep(0.2)
