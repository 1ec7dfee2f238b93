"""A whole Backhaul for acceptance tests: `backhaul up` and a simulated upstream, as processes.

Driven only from outside, as an operator would: the command's JSON line, HTTP, signals.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

from api.up import leash
from tests.support.waiting import deadline_in

#: `backhaul` of the environment that runs the tests.
BACKHAUL = str(Path(sys.executable).with_name("backhaul"))


@dataclass
class Simulator:
    """A running `backhaul simulate`."""

    process: subprocess.Popen[str]
    base_url: str

    @property
    def root(self) -> str:
        """The server's address without /v1, where its control routes are."""
        return self.base_url.removesuffix("/v1")

    def requests(self) -> dict[str, Any]:
        """What it served, by request key, and totals."""
        return _http_json(f"{self.root}/sim/requests")

    def configure(self, **changes: Any) -> None:
        """Changes its behaviour while it runs."""
        _http_json(f"{self.root}/sim/config", changes)

    def reset(self) -> None:
        """Forgets what it counted."""
        _http_json(f"{self.root}/sim/reset", {})

    def stop(self) -> None:
        """Ends it."""
        _end(self.process)


@dataclass
class Stack:
    """A running `backhaul up`."""

    process: subprocess.Popen[str]
    info: dict[str, Any]
    data_dir: Path
    command: Sequence[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)

    @property
    def base_url(self) -> str:
        """Where the gateway answers, with /v1."""
        return str(self.info["base_url"])

    @property
    def api_key(self) -> str:
        """The first tenant's key."""
        return str(self.info["api_key"])

    def pids(self, role: str) -> list[int]:
        """The processes of a role now, restarted ones included."""
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children(recursive=True)
            return sorted(c.pid for c in children if _role_of(c) == role)
        return []

    def kill(self, role: str, number: int = 0) -> int:
        """kill -9 of one process of a role; the pid it had."""
        pid = self.pids(role)[number]
        os.kill(pid, signal.SIGKILL)
        return pid

    def new_key(self, tenant: str) -> str:
        """A key of another tenant."""
        made = subprocess.run(
            [BACKHAUL, "keys", "create", tenant, "--kafka", self.info["kafka"], "--json"],
            env={**os.environ, **self.env},
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return str(json.loads(made.stdout)["secret"])

    def kill_supervisor_and_restart(self) -> None:
        """kill -9 of `backhaul up` itself, then the same command again on the same folder."""
        self.process.kill()
        self.process.wait(timeout=30)
        _end(self.process)
        self.process, self.info = _launch(self.command, self.env, within_s=120)

    def stop(self) -> int:
        """Ctrl-C, and the exit code."""
        return _end(self.process)


def start_simulator(*options: str) -> Simulator:
    """Starts a simulated upstream on a free port; it serves the model `sim`."""
    process, info = _launch(
        [BACKHAUL, "simulate", "--port", "0", "--json", "--model", "sim", *options], {}, 30
    )
    return Simulator(process, str(info["base_url"]))


def start_stack(
    data_dir: Path, *options: str, env: dict[str, str] | None = None, within_s: float = 120
) -> Stack:
    """Starts everything on a free port and waits until it is ready."""
    command = [BACKHAUL, "up", "--json", "--data", str(data_dir), "--port", "0", *options]
    extra = env or {}
    process, info = _launch(command, extra, within_s)
    return Stack(process, info, data_dir, command, extra)


@contextlib.contextmanager
def running(*things: Simulator | Stack) -> Iterator[None]:
    """Stops everything at the end, whatever happened."""
    try:
        yield
    finally:
        for thing in reversed(things):
            with contextlib.suppress(Exception):
                thing.stop()


def _role_of(process: psutil.Process) -> str | None:
    try:
        words = process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return None
    if "kafka.Kafka" in words:
        return "broker"
    if "-m" not in words:
        return None
    module, *rest = words[words.index("-m") + 1 :]
    if module == "streams":
        return rest[0] if rest else None
    return {"api": "gateway", "api.bridge": "bridge"}.get(module)


def leashed(*command: str) -> list[str]:
    """The command for a process in a session of its own, which Ctrl-C at the tests won't reach.

    It must be started in the main thread (see api.up.process.ChildProcess).
    """
    return [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), *command]


def _launch(
    command: Sequence[str], env: dict[str, str], within_s: float
) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    process = subprocess.Popen(
        leashed(*command),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **env},
        start_new_session=True,
    )
    assert process.stdout is not None
    line = _first_line(process, process.stdout, within_s)
    return process, json.loads(line)


def _first_line(process: subprocess.Popen[str], out: IO[str], within_s: float) -> str:
    deadline = deadline_in(within_s)
    with selectors.DefaultSelector() as selector:
        selector.register(out, selectors.EVENT_READ)
        while time.monotonic() < deadline:
            if selector.select(timeout=0.2):
                line = out.readline()
                if line:
                    return line
            if process.poll() is not None:
                raise AssertionError(f"{process.args!r} ended with {process.returncode}")
    _end(process)
    raise AssertionError(f"{process.args!r} printed nothing in time")


def _end(process: subprocess.Popen[str]) -> int:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=45)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=60)
    if process.stdout is not None:
        process.stdout.close()
    return process.returncode


def _http_json(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        result: dict[str, Any] = json.loads(answer.read())
        return result
