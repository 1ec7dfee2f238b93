"""Children of `backhaul up`: they end with it, come back when they die, and say why."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import psutil
import pytest

from api.up.board import State
from api.up.broker import free_port
from api.up.plan import Process
from api.up.process import ChildProcess, LogFile
from api.up.role import RoleProcess
from tests.support.waiting import eventually, eventually_sync

#: A process with the health endpoint of a role.
_ROLE = """
import http.server, sys
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Health).serve_forever()
"""
#: A parent that starts a sleeper on a leash and says its pid.
_PARENT = """
import os, sys, time
from pathlib import Path
from api.up.process import ChildProcess, LogFile
child = ChildProcess(["sleep", "60"], os.environ, LogFile(Path(sys.argv[1])), None)
child.start()
print(child.pid, flush=True)
time.sleep(60)
"""


class _Board:
    """Remembers what was shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[State, str]] = []

    def show(self, process: str, state: State, note: str = "") -> None:
        self.shown.append((state, note))

    def say(self, text: str) -> None:
        raise AssertionError(text)

    def states(self) -> list[State]:
        return [state for state, _ in self.shown]


def _process(port: int, *command: str, env: dict[str, str] | None = None) -> Process:
    url = f"http://127.0.0.1:{port}/ready"
    return Process(
        role="controller",
        index=0,
        command=command or (sys.executable, "-c", _ROLE, str(port)),
        env={**os.environ, **(env or {})},
        live_url=url,
        ready_url=url,
    )


@pytest.mark.parametrize("leash", ["kernel", "guard"])
def test_a_child_ends_when_its_parent_is_killed_with_9(tmp_path: Path, leash: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(tmp_path / "log")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "BACKHAUL_LEASH": leash},
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    eventually_sync(lambda: child.name() == "sleep")
    parent.kill()
    parent.wait()
    parent.stdout.close()
    eventually_sync(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


async def test_a_child_that_ignores_sigterm_is_killed_when_its_time_is_over(
    tmp_path: Path,
) -> None:
    stubborn = "import signal,time; signal.signal(15, signal.SIG_IGN); print('on'); time.sleep(60)"
    log = LogFile(tmp_path / "log")
    child = ChildProcess([sys.executable, "-u", "-c", stubborn], os.environ, log, None)
    child.start()
    await eventually(lambda: log.last_lines(1) == ["on"])
    assert not await child.stop(0.2)
    assert child.exit_code == -signal.SIGKILL


async def test_ctrl_c_in_the_terminal_does_not_reach_a_child_directly(tmp_path: Path) -> None:
    child = ChildProcess(["sleep", "60"], os.environ, LogFile(tmp_path / "log"), None)
    child.start()
    assert os.getpgid(child.pid) != os.getpgid(0)
    child.kill()


async def test_a_role_that_is_killed_is_running_again_and_ready(tmp_path: Path) -> None:
    board = _Board()
    async with aiohttp.ClientSession() as http:
        role = RoleProcess(_process(free_port()), tmp_path, http, board)
        task = asyncio.create_task(role.keep_running())
        await asyncio.wait_for(role.ready.wait(), 20)
        first = role.pid
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: role.pid != first and role.ready.is_set(), within_s=20)
        task.cancel()
        await role.stop(5)
    assert board.states() == [
        State.STARTING,
        State.READY,
        State.DIED,
        State.STARTING,
        State.READY,
        State.STOPPING,
        State.STOPPED,
    ]
    assert not psutil.pid_exists(role.pid)


async def test_a_role_that_keeps_dying_shows_the_end_of_its_log_and_is_hopeless(
    tmp_path: Path,
) -> None:
    board = _Board()
    complaint = "import sys; sys.exit('no such topic')"
    async with aiohttp.ClientSession() as http:
        process = _process(free_port(), sys.executable, "-S", "-c", complaint)
        role = RoleProcess(process, tmp_path, http, board)
        task = asyncio.create_task(role.keep_running())
        await eventually(lambda: role.hopeless, within_s=30)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    deaths = [note for state, note in board.shown if state is State.DIED]
    assert "no such topic" not in deaths[0]
    assert "no such topic" in deaths[-1]
    assert "no such topic" in role.last_words()


async def test_a_fail_point_aborts_only_the_first_life(tmp_path: Path) -> None:
    dies_at_the_point = "import os,time; os.environ.get('BACKHAUL_FAILPOINT') and os._exit(137); "
    port = free_port()
    process = _process(
        port,
        *(sys.executable, "-c", dies_at_the_point + _ROLE, str(port)),
        env={"BACKHAUL_FAILPOINT": "controller.effects_sent"},
    )
    async with aiohttp.ClientSession() as http:
        role = RoleProcess(process, tmp_path, http, _Board())
        task = asyncio.create_task(role.keep_running())
        await asyncio.wait_for(role.ready.wait(), 20)
        assert role.policy.deaths == 1
        task.cancel()
        await role.stop(5)
