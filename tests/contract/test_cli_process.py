"""`backhaul` as a process: how it starts, and how it ends on a signal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.fake_gateway import API_KEY, a_batch, running_gateway
from tests.support.waiting import eventually_sync

BACKHAUL = (sys.executable, "-c", "from api.cli.main import main; main()")
#: Costly to import, and nothing that these commands need. (typer itself needs pydantic.)
HEAVY = {"aiohttp", "aiokafka", "faust", "pydantic_settings", "structlog", "obstore", "yaml"}


@contextmanager
def started(*args: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*BACKHAUL, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("args", [["--help"], ["list"], ["watch", "b"]])
def test_a_command_imports_only_what_it_needs(args: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from api.cli.main import app\n"
        f"try: app({args!r})\n"
        "except SystemExit: pass\n"
        "sys.stderr.write('\\n' + ' '.join(m for m in sys.modules if '.' not in m))"
    )
    env = {**os.environ, "BACKHAUL_DATA_DIR": str(tmp_path), "BACKHAUL_BASE_URL": "http://[::1]:1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
    )
    assert not HEAVY & set(done.stderr.splitlines()[-1].split())


def test_ctrl_c_while_watching_exits_130_and_leaves_the_batch_alone() -> None:
    with running_gateway() as gateway:
        gateway.add_batch(a_batch("b", counts=(9, 1, 0)))
        env = {"BACKHAUL_BASE_URL": gateway.base_url, "BACKHAUL_API_KEY": API_KEY}
        with started("watch", "b", env=env) as process:
            eventually_sync(lambda: len(gateway.requests) >= 2)
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "backhaul watch b" in told
        assert "Traceback" not in told
        assert {method for method, _ in gateway.requests} == {"GET"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_simulator_says_where_it_listens_and_ends_cleanly(
    number: signal.Signals, tmp_path: Path
) -> None:
    args = ("--json", "--error", "503=0.5", "--model-config", 'm={"slots": 3}')
    with started("simulate", *args, "--log", str(tmp_path / "log")) as process:
        assert process.stdout is not None
        line = json.loads(process.stdout.readline())
        root = line["base_url"].removesuffix("/v1")
        with urllib.request.urlopen(f"{root}/sim/config", timeout=60) as answer:  # noqa: S310
            config = json.loads(answer.read())
        assert config["errors"] == {"503": 0.5}
        assert config["models"] == {"m": {"slots": 3}}
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
        assert (process.returncode, told) == (0, "")


@pytest.mark.parametrize(
    "args",
    [
        ("--latency", "fast"),
        ("--error", "503"),
        ("--error", "200=1"),
        ("--fault", "nope=1"),
        ("--model-config", "m=x"),
        ("--port", "x"),
    ],
)
def test_a_wrong_option_of_the_simulator_exits_2(args: tuple[str, ...]) -> None:
    done = subprocess.run(
        [*BACKHAUL, "simulate", *args], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_completion_can_be_shown() -> None:
    env = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        [*BACKHAUL, "--show-completion", "bash"],
        capture_output=True,
        text=True,
        check=False,
        env=env,
    )
    assert "backhaul" in done.stdout


def test_on_a_terminal_the_progress_is_a_bar_in_80_columns() -> None:
    steps = [a_batch("b", counts=(50_000, 4000 * n, 10 * n)) for n in range(12)]
    with running_gateway() as gateway:
        gateway.add_batch(*steps, a_batch("b", "completed", counts=(50_000, 49_900, 100)))
        env = {"BACKHAUL_BASE_URL": gateway.base_url, "BACKHAUL_API_KEY": API_KEY}
        code, told = _on_a_terminal("watch", "b", "--interval", "0.2", env=env)
    assert code == 0
    frames = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", told))
    assert any("lines/s" in frame and "left" in frame for frame in frames)
    assert "50000/50000 100 failed" in "\n".join(frames)
    assert max(map(len, frames)) <= 80


def _on_a_terminal(*args: str, env: dict[str, str]) -> tuple[int, str]:
    """Runs the command with a pseudo-terminal; its exit code and all that it wrote."""
    here, there = pty.openpty()
    process = subprocess.Popen(
        [*BACKHAUL, *args],
        stdin=there,
        stdout=there,
        stderr=there,
        env={**os.environ, **env, "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(there)
    told = b""
    # A terminal whose other end was closed reads as an error, not as an end.
    with contextlib.suppress(OSError):
        while chunk := os.read(here, 65536):
            told += chunk
    os.close(here)
    return process.wait(timeout=60), told.decode()
