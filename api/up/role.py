"""Keeps one role process running: knows when it is ready, starts it again when it dies."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp

from api.up.backoff import RestartPolicy
from api.up.board import Board, State
from api.up.plan import Process
from api.up.process import ChildProcess, LogFile

_POLL_S = 0.1
_PROBE_WITHIN_S = 2.0
#: How often a process that is ready is asked whether it lives.
_LIVENESS_EVERY_S = 5.0
#: A process that hasn't answered for this long hangs and is killed. Longer than any pause that
#: its own fencing handles, so that a machine that was slow or suspended is not made worse.
HANGS_AFTER_S = 90.0
#: A start is given up for good when it failed so often in a row.
HOPELESS_AFTER = 5
_SHOWN_LINES = 8
#: Aborts a process at a named point once; its next life must get past it.
_FAILPOINT = "BACKHAUL_FAILPOINT"


class RoleProcess:
    """One process of a role, over all of its lives."""

    def __init__(
        self, process: Process, logs: Path, http: aiohttp.ClientSession, board: Board
    ) -> None:
        self.process = process
        self.ready = asyncio.Event()
        self.policy = RestartPolicy()
        self._log = LogFile(logs / f"{process.name}.log")
        self._http = http
        self._board = board
        self._child = self._new_child()

    @property
    def pid(self) -> int:
        """The present process; 0 before the first start."""
        return self._child.pid

    @property
    def hopeless(self) -> bool:
        """Whether it keeps dying without ever becoming ready."""
        return self.policy.deaths >= HOPELESS_AFTER and not self.ready.is_set()

    async def keep_running(self) -> None:
        """Runs until it is cancelled; then the process may still run (see `stop`)."""
        while True:
            self._board.show(self.process.name, State.STARTING)
            self._child.start()
            await self._watch()
            self.ready.clear()
            delay_s = self.policy.died(time.monotonic())
            self._board.show(self.process.name, State.DIED, self._obituary(delay_s))
            await asyncio.sleep(delay_s)
            self._child = self._new_child()

    async def stop(self, within_s: float) -> None:
        """Asks it to finish, kills it when the time is over."""
        if self._child.running:
            self._board.show(self.process.name, State.STOPPING)
            await self._child.stop(within_s)
        self._board.show(self.process.name, State.STOPPED)

    def kill(self) -> None:
        """Ends the present process at once."""
        self._child.kill()

    def last_words(self) -> str:
        """The end of its log, indented."""
        return "".join(f"\n  {line}" for line in self._log.last_lines(_SHOWN_LINES))

    def _new_child(self) -> ChildProcess:
        env = dict(self.process.env)
        if self.policy.deaths:
            env.pop(_FAILPOINT, None)
        return ChildProcess(self.process.command, env, self._log, cwd=None)

    async def _watch(self) -> None:
        """Returns when the process has ended."""
        alive_at = asked_at = time.monotonic()
        while self._child.running:
            await asyncio.sleep(_POLL_S)
            now = time.monotonic()
            if not self.ready.is_set():
                if await self._says_yes(self.process.ready_url):
                    self._became_ready()
            elif now - asked_at >= _LIVENESS_EVERY_S:
                asked_at = now
                if await self._says_yes(self.process.live_url):
                    alive_at = time.monotonic()
                elif now - alive_at > HANGS_AFTER_S:
                    self._board.say(f"{self.process.name} hangs (pid {self.pid}): killing it.")
                    self._child.kill()

    def _became_ready(self) -> None:
        self.policy.became_ready(time.monotonic())
        self.ready.set()
        self._board.show(self.process.name, State.READY, f"pid {self.pid}")

    async def _says_yes(self, url: str) -> bool:
        timeout = aiohttp.ClientTimeout(total=_PROBE_WITHIN_S)
        try:
            async with self._http.get(url, timeout=timeout) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    def _obituary(self, delay_s: float) -> str:
        text = f"exit code {self._child.exit_code}, starting it again"
        if delay_s >= 1:
            text += f" in {delay_s:.0f} s"
        if self.policy.worth_showing:
            text += f" (death {self.policy.deaths} in a row); {self._log.path} ends with:"
            text += self.last_words()
        return text
