"""One child process of `backhaul up`: on a leash, its output in a log file of bounded size."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_LEASH = Path(__file__).with_name("leash.py")
#: A log of this size is moved to `<name>.1`, so each child keeps at most twice as much.
LOG_BYTES = 8 * 1024 * 1024
#: How much of a log's end is looked at for its last lines.
_TAIL_BYTES = 16 * 1024
_POLL_S = 0.05


class LogFile:
    """A log that a child writes to directly, so that its last words survive whatever dies."""

    def __init__(self, path: Path, limit_bytes: int = LOG_BYTES) -> None:
        self.path = path
        self._limit_bytes = limit_bytes

    def open(self) -> int:
        """A descriptor for a child's output. Appending, so that `rotate` may cut the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def rotate(self) -> bool:
        """Copies the log aside and empties it once it is too long; whether it did."""
        try:
            if self.path.stat().st_size < self._limit_bytes:
                return False
        except FileNotFoundError:
            return False
        # The child keeps its descriptor, so the file is copied and cut rather than renamed. A line
        # written between the two is lost: a log may lose one, a child may not be made to wait.
        shutil.copyfile(self.path, self.path.with_name(self.path.name + ".1"))
        os.truncate(self.path, 0)
        return True

    def last_lines(self, count: int) -> list[str]:
        """The end of the log, for people; empty if there is none."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return []
        return [line for line in text.splitlines() if line.strip()][-count:]


class ChildProcess:
    """A process that ends when we do.

    It has a session of its own, so that Ctrl-C in the terminal reaches only us and we stop the
    children in order. Call `start` in the main thread: the kernel ties a child to the *thread*
    that made it.
    """

    def __init__(
        self, command: Sequence[str | Path], env: Mapping[str, str], log: LogFile, cwd: Path | None
    ) -> None:
        self.log = log
        self._command = [str(part) for part in command]
        self._env = dict(env)
        self._cwd = cwd
        self._popen: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0

    @property
    def pid(self) -> int:
        """The process id of the last start; 0 before it."""
        return self._popen.pid if self._popen else 0

    @property
    def exit_code(self) -> int | None:
        """How it ended (negative: by that signal); None while it runs or was never started."""
        return self._popen.poll() if self._popen else None

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._popen is not None and self._popen.poll() is None

    def start(self) -> None:
        """Starts it; it must not be running."""
        output = self.log.open()
        try:
            self._popen = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-I", "-S", str(_LEASH), str(os.getpid()), *self._command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd=self._cwd,
                start_new_session=True,
            )
        finally:
            os.close(output)
        self.started_at = time.monotonic()

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal if it still runs."""
        if self._popen is not None:
            self._popen.send_signal(number)

    async def wait(self, within_s: float) -> bool:
        """Whether it has ended within the time."""
        deadline = time.monotonic() + within_s
        while self.running and time.monotonic() < deadline:  # noqa: ASYNC110 - nothing to await on
            await asyncio.sleep(_POLL_S)
        return not self.running

    async def stop(self, within_s: float) -> bool:
        """Asks it to end (SIGTERM), kills it when the time is over; whether it ended by itself."""
        self.signal(signal.SIGTERM)
        if await self.wait(within_s):
            return True
        self.kill()
        return False

    def kill(self) -> None:
        """Ends it at once and takes its exit code."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()
