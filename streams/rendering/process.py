"""One template process, seen from its parent.

    started ──ready──► idle ◄──ask / answer──► busy
       └─────────────────┴───────────────────────┴──► ended (an End)

What it says is untrusted: a frame that is too large, malformed or not asked for ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import sys
from collections.abc import Sequence
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import msgspec

from streams.domain.prompts.template import MAX_RENDERED_BYTES
from streams.rendering.frames import HEADER_BYTES, Answer, Job, Status, frame

#: The command of a template process, but for its settings, which are the last argument.
COMMAND = (sys.executable, "-I", "-S", "-B", "-X", "utf8", str(Path(__file__).with_name("boot.py")))
#: Templates told to a process before it forgets all: half of what a Sandbox keeps compiled, so
#: that no line pays for compiling what was compiled before.
MAX_TOLD = 64
MAX_TOLD_CHARS = 512 * 1024
#: Largest answer: the texts, and a few bytes for each of them.
_MAX_ANSWER_BYTES = MAX_RENDERED_BYTES + 256 * 1024
#: Patience is counted in ticks, so that a machine that slept has not used it up.
_TICK_S = 0.5
#: How long a dead process's pipes may stay open.
_LINGER_S = 1.0
_MAX_COMPLAINT_BYTES = 4096
_MAX_REASON_CHARS = 300
#: What it imports that is not of the standard library.
_PACKAGES = ("streams", "msgspec", "jinja2", "markupsafe")
#: What it keeps of our environment: an interpreter may need it to find its own library.
_KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")

_decode_answer = msgspec.msgpack.Decoder(Answer).decode


class End(StrEnum):
    """Why a process ended. Values are metric labels."""

    #: It did not get as far as its first job.
    NOT_STARTED = "not_started"
    #: It took too much time or memory for a line, or much memory over its life, and said so.
    SPENT = "spent"
    #: It ended in a line: by a limit that the kernel holds, or a crash.
    DIED = "died"
    #: Somebody else killed it.
    KILLED = "killed"
    #: It did not answer in time, however long it had had the CPU.
    STUCK = "stuck"
    #: It said what it must not.
    MISBEHAVED = "misbehaved"
    #: We had no more use for it.
    STOPPED = "stopped"


class ProcessEndedError(Exception):
    """The process is gone, and the job with it. detail: what it said while it started."""

    def __init__(self, end: End, detail: str = "") -> None:
        super().__init__(end.value)
        self.end = end
        self.detail = detail


class TemplateProcess(asyncio.SubprocessProtocol):
    """A child. `start` it, `ask` one job at a time, `close` it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.SubprocessTransport | None = None
        self._pid = 0
        self._gone: asyncio.Future[End] = self._loop.create_future()
        self._answer: asyncio.Future[Answer] | None = None
        self._received = bytearray()
        self._complaint = bytearray()
        self._ready = False
        self._end: End | None = None
        self._closed = False
        self._exited = False
        self._told: dict[str, int] = {}
        self._told_chars = 0
        self._ticks_left = 0
        self._ticking: asyncio.TimerHandle | None = None
        self._lingering: asyncio.TimerHandle | None = None
        #: Set when the process ends, for whoever waits for work to give it.
        self.wake: asyncio.Future[None] | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._pid

    @property
    def ending(self) -> bool:
        """Whether it takes no more jobs."""
        return self._end is not None or self._closed or self._exited

    async def start(self, command: Sequence[str], settings: dict[str, object], in_s: float) -> None:
        """Waits until it is ready. Raises ProcessEndedError; it must be closed all the same."""
        argument = msgspec.json.encode({**settings, "path": import_path()}).decode()
        answered = self._expect(in_s)
        try:
            await self._spawn(*command, argument)
        except OSError as error:
            self._answer = None
            raise ProcessEndedError(End.NOT_STARTED, os.strerror(error.errno or 0)) from None
        try:
            answer = await answered
        except ProcessEndedError:
            raise ProcessEndedError(End.NOT_STARTED, self._reason()) from None
        if answer.status is not Status.READY:
            self._kill(End.MISBEHAVED)
            raise ProcessEndedError(End.NOT_STARTED, "it did not say that it is ready")
        self._ready = True

    async def _spawn(self, *command: str) -> None:
        spawning = asyncio.ensure_future(
            self._loop.subprocess_exec(
                lambda: self,
                *command,
                cwd="/",
                env={name: os.environ[name] for name in _KEPT if name in os.environ},
                start_new_session=True,
            )
        )
        # Cut in the middle, asyncio would leave pipes open. It takes milliseconds.
        await _until_done(spawning)
        spawning.result()

    async def ask(self, templates: Sequence[str], variables: bytes, patience_s: float) -> Answer:
        """Has one line rendered; what it says is sound. Raises ProcessEndedError."""
        answered = self._expect(patience_s)
        if self._gone.done():
            self._answer = None
            raise ProcessEndedError(self._gone.result())
        self._write(frame(self._job(templates, variables)))
        answer = await answered
        if not _is_sound(answer, templates):
            self._kill(End.MISBEHAVED)
            raise ProcessEndedError(End.MISBEHAVED)
        if answer.last:
            self._end = End.SPENT
        return answer

    def knows(self, templates: Sequence[str]) -> bool:
        """Whether it has compiled all of these."""
        return all(template in self._told for template in templates)

    async def close(self) -> End:
        """Ends it, whatever it does, and waits until it is gone; why it ended."""
        self._kill(End.STOPPED)
        if self._transport is None:
            return End.NOT_STARTED
        await _until_done(self._gone)
        end = self._gone.result()
        return end if self._ready else End.NOT_STARTED

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It runs."""
        self._transport = cast("asyncio.SubprocessTransport", transport)
        self._pid = self._transport.get_pid() or 0
        self._tick()

    def pipe_data_received(self, fd: int, data: bytes | str) -> None:
        """It says something: complaints until it is ready, and frames."""
        assert isinstance(data, bytes)  # noqa: S101 - narrows for the type checker
        if self._end is not None:
            # Nothing that it says now is of use, whatever was on its way.
            return
        if fd == 1:
            self._received += data
            self._read_frame()
        elif not self._ready:
            self._complaint += data[: _MAX_COMPLAINT_BYTES - len(self._complaint)]

    def pipe_connection_lost(self, fd: int, _exc: Exception | None) -> None:
        """A pipe is closed: without them it is of no use, and soon it should be gone."""
        if fd == 1 and not self._exited:
            self._closed = True
            self._lingering = self._loop.call_later(_LINGER_S, self._kill, End.MISBEHAVED)

    def process_exited(self) -> None:
        """It has ended; what it said last may still be on its way."""
        self._exited = True
        if self._transport is not None:
            self._stop_timer(self._lingering)
            self._lingering = self._loop.call_later(_LINGER_S, self._transport.close)

    def connection_lost(self, _exc: Exception | None) -> None:
        """It has ended, and nothing is left to read."""
        self._exited = True
        self._stop_timer(self._ticking)
        self._stop_timer(self._lingering)
        assert self._transport is not None  # noqa: S101 - there was a connection
        if self._end is None:
            killed = self._transport.get_returncode() == -signal.SIGKILL
            self._end = End.KILLED if killed else End.DIED
        self._transport.close()
        end = self._end
        self._gone.set_result(end)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ProcessEndedError(end))
            self._answer.exception()
        self._answer = None
        if self.wake is not None and not self.wake.done():
            self.wake.set_result(None)

    def _expect(self, patience_s: float) -> asyncio.Future[Answer]:
        self._ticks_left = math.ceil(patience_s / _TICK_S)
        self._answer = self._loop.create_future()
        return self._answer

    def _job(self, templates: Sequence[str], variables: bytes) -> Job:
        new = self._new(templates)
        forget = bool(new) and (
            len(self._told) + len(new) > MAX_TOLD
            or self._told_chars + sum(map(len, new)) > MAX_TOLD_CHARS
        )
        if forget:
            self._told.clear()
            self._told_chars = 0
            new = self._new(templates)
        for template in new:
            self._told[template] = len(self._told)
            self._told_chars += len(template)
        wanted = tuple(self._told[template] for template in templates)
        return Job(forget, tuple(new), wanted, variables)

    def _new(self, templates: Sequence[str]) -> list[str]:
        return [template for template in dict.fromkeys(templates) if template not in self._told]

    def _write(self, data: bytes) -> None:
        assert self._transport is not None  # noqa: S101 - it was started
        pipe = self._transport.get_pipe_transport(0)
        if pipe is not None and not self.ending:
            cast("asyncio.WriteTransport", pipe).write(data)

    def _read_frame(self) -> None:
        received = self._received
        if len(received) < HEADER_BYTES:
            return
        size = int.from_bytes(received[:HEADER_BYTES], "big")
        if size > _MAX_ANSWER_BYTES or len(received) > HEADER_BYTES + size:
            self._kill(End.MISBEHAVED)
        elif len(received) == HEADER_BYTES + size:
            self._received = bytearray()
            self._take(received)

    def _take(self, received: bytearray) -> None:
        answered, self._answer = self._answer, None
        try:
            answer = _decode_answer(memoryview(received)[HEADER_BYTES:])
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._answer = answered
            self._kill(End.MISBEHAVED)
            return
        if answered is None:
            self._kill(End.MISBEHAVED)
        elif not answered.done():
            answered.set_result(answer)

    def _tick(self) -> None:
        """Counts the patience of whoever waits for an answer down."""
        self._ticking = self._loop.call_later(_TICK_S, self._tick)
        if self._answer is not None:
            if self._ticks_left <= 0:
                self._kill(End.STUCK)
            self._ticks_left -= 1

    def _kill(self, end: End) -> None:
        if self._exited or self._end not in (None, End.SPENT):
            return
        self._end = self._end or end
        if self._pid:
            # Not the transport's kill(): that looks whether it has ended, and on some event loops
            # would take its exit code before the loop does.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    @staticmethod
    def _stop_timer(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()

    def _reason(self) -> str:
        """The last line that it said while it started; callers' texts can't be in it yet."""
        lines = self._complaint.decode("utf-8", "replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "")
        code = self._transport.get_returncode() if self._transport else None
        return said[:_MAX_REASON_CHARS] or f"it ended with code {code}"


async def _until_done(future: asyncio.Future[Any]) -> None:
    """Waits for what will not take long, to the end, even when the waiter is cancelled."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


def import_path() -> list[str]:
    """Where a template process finds our code and the libraries that it needs."""
    found = [spec.origin for name in _PACKAGES if (spec := find_spec(name)) and spec.origin]
    return list(dict.fromkeys(str(Path(origin).absolute().parents[1]) for origin in found))


def _is_sound(answer: Answer, templates: Sequence[str]) -> bool:
    if answer.status is Status.RENDERED:
        size = sum(map(len, answer.texts))
        return len(answer.texts) == len(templates) and size <= MAX_RENDERED_BYTES
    return answer.status is not Status.READY and not answer.texts
