"""What runs on top of a Backhaul, and how it is stopped; the supervisor is a fake."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from api.up import session
from api.up.board import Board, QuietBoard
from api.up.lock import FolderInUseError, FolderLock
from api.up.options import UpError, UpOptions
from api.up.session import EXIT_INTERRUPTED, run_on_top
from api.up.supervisor import Running


class _Supervisor:
    """Starts at once; remembers that it was stopped."""

    made: _Supervisor
    failure: Exception | None = None

    def __init__(self, options: UpOptions, board: Board) -> None:
        type(self).made = self
        self.stopped = 0

    async def start(self) -> Running:
        return cast("Running", object())

    async def watch(self) -> None:
        if self.failure is not None:
            raise self.failure
        await asyncio.Event().wait()

    async def stop(self) -> None:
        self.stopped += 1


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "Supervisor", _Supervisor)
    monkeypatch.setattr(_Supervisor, "failure", None)


async def test_the_bodys_exit_code_is_the_commands_and_everything_is_stopped(
    tmp_path: Path,
) -> None:
    async def body(_: Running) -> int:
        return 4

    assert await run_on_top(UpOptions(data_dir=tmp_path), QuietBoard(), body) == 4
    assert _Supervisor.made.stopped == 1


async def test_a_body_that_fails_leaves_nothing_running(tmp_path: Path) -> None:
    async def body(_: Running) -> int:
        raise UpError("no")

    with pytest.raises(UpError):
        await run_on_top(UpOptions(data_dir=tmp_path), QuietBoard(), body)
    assert _Supervisor.made.stopped == 1


async def test_a_supervisor_that_fails_ends_the_body(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(_: Running) -> int:
        await asyncio.Event().wait()
        return 0

    monkeypatch.setattr(_Supervisor, "failure", UpError("the disk is gone"))
    with pytest.raises(UpError, match="disk"):
        await run_on_top(UpOptions(data_dir=tmp_path), QuietBoard(), body)
    assert _Supervisor.made.stopped == 1


async def test_a_signal_stops_in_order_and_frees_the_folder(tmp_path: Path) -> None:
    async def body(_: Running) -> int:
        with pytest.raises(FolderInUseError):
            FolderLock(tmp_path).__enter__()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()
        return 0

    code = await run_on_top(UpOptions(data_dir=tmp_path), QuietBoard(), body)
    assert code == EXIT_INTERRUPTED
    assert _Supervisor.made.stopped == 1
    with FolderLock(tmp_path):
        pass


#: A Backhaul whose stop never ends.
_STUCK = """
import asyncio, sys
from pathlib import Path
from api.up import session
from api.up.board import QuietBoard
from api.up.options import UpOptions

class Stuck:
    def __init__(self, *_): pass
    async def start(self): return None
    async def watch(self): await asyncio.Event().wait()
    async def stop(self):
        print("stopping", flush=True)
        await asyncio.Event().wait()
    def kill(self): print("killed", flush=True)

async def body(_):
    print("running", flush=True)
    await asyncio.Event().wait()

session.Supervisor = Stuck
asyncio.run(session.run_on_top(UpOptions(data_dir=Path(sys.argv[1])), QuietBoard(), body))
"""


def test_a_second_ctrl_c_ends_everything_at_once(tmp_path: Path) -> None:
    stuck = subprocess.Popen(
        [sys.executable, "-c", _STUCK, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert stuck.stdout is not None
    with stuck.stdout as said:
        assert said.readline() == "running\n"
        stuck.send_signal(signal.SIGINT)
        assert said.readline() == "stopping\n"
        stuck.send_signal(signal.SIGINT)
        assert said.readline() == "killed\n"
        assert stuck.wait(timeout=60) == EXIT_INTERRUPTED
