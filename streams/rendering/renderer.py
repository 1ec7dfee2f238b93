"""The pool of template processes: a line that needs one waits here for its turn.

    renderer = Renderer(processes=2)
    texts = await renderer.render(sources, variables, fair_key=batch_id)
    await renderer.stop()

A process has one line at a time, so that a template that must be stopped takes no other line
with it. The first line starts the processes; where none comes, none is started.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec
import structlog

from schemas.metrics import RENDER_SECONDS, RENDERER_ENDS, RENDERS, Metrics
from streams.background import Broken
from streams.domain.prompts.template import (
    RenderError,
    RenderFailed,
    RenderTimeout,
    RenderTooLarge,
)
from streams.rendering.frames import Answer, Status
from streams.rendering.process import COMMAND, End, ProcessEndedError, TemplateProcess
from streams.rendering.turns import Turns

log = structlog.get_logger(__name__)

PROCESSES = 2
#: CPU time of one line.
LINE_CPU_S = 0.1
#: CPU time of compiling one line's templates, which happens once in each process. The largest
#: that may be stored take about a second.
COMPILE_CPU_S = 3.0
#: How long a process may take for a line by the clock: for machines that are very busy. Templates
#: can't wait, only compute, so it is their CPU time that stops them.
LINE_WALL_S = 10.0
COMPILE_WALL_S = 60.0
START_WALL_S = 60.0
#: Memory of a process beyond that of a fresh interpreter.
MEMORY_BYTES = 512 << 20
#: Pauses before a process is started again: when it could not start, and when it did not
#: answer a single line. They double.
_FIRST_PAUSE_S = 0.1
_MAX_START_PAUSE_S, _MAX_PAUSE_S = 30.0, 1.0

_ERRORS: Mapping[Status, type[RenderError]] = MappingProxyType(
    {
        Status.FAILED: RenderFailed,
        Status.TOO_LARGE: RenderTooLarge,
        Status.TIMEOUT: RenderTimeout,
    }
)
_encode = msgspec.json.encode


class RendererStoppedError(Exception):
    """The line was not rendered, because the renderer stops. It is no fault of the line."""


class _Line:
    """A line that waits or is being rendered."""

    __slots__ = ("key", "kills", "result", "sources", "variables")

    def __init__(self, sources: Sequence[str], variables: bytes, key: str) -> None:
        self.sources = tuple(sources)
        self.variables = variables
        self.key = key
        self.result: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
        #: How often a process was killed from outside while it had this line.
        self.kills = 0

    def wanted(self) -> bool:
        """Whether somebody still waits for it."""
        return not self.result.done()

    def succeed(self, texts: list[bytes]) -> None:
        if self.wanted():
            self.result.set_result(texts)

    def fail(self, error: Exception) -> None:
        if self.wanted():
            self.result.set_exception(error)
            # Read at once, because whoever waits may be cancelled before it can.
            self.result.exception()


class Renderer:
    """Renders templates that are not plain. `broken` hears of bugs of its own."""

    def __init__(
        self,
        *,
        processes: int = PROCESSES,
        line_cpu_s: float = LINE_CPU_S,
        line_wall_s: float = LINE_WALL_S,
        compile_cpu_s: float = COMPILE_CPU_S,
        memory_bytes: int = MEMORY_BYTES,
        metrics: Metrics | None = None,
        broken: Broken | None = None,
        command: Sequence[str] = COMMAND,
        module: str = "streams.rendering.child",
    ) -> None:
        self._processes = processes
        self._line_wall_s = line_wall_s
        self._command = command
        self._settings: dict[str, object] = {
            "module": module,
            "memory_bytes": memory_bytes,
            "line_cpu_s": line_cpu_s,
            "compile_cpu_s": compile_cpu_s,
        }
        self._meter = _Meter(metrics or Metrics())
        self._broken = broken or _log_bug
        self._turns: Turns[_Line] = Turns(_Line.wanted)
        self._idle: list[asyncio.Future[None]] = []
        self._slots: list[asyncio.Task[None]] = []
        self._running: dict[int, TemplateProcess] = {}
        self._stopped = False

    @property
    def pids(self) -> list[int]:
        """Process ids of the processes that are ready."""
        return [process.pid for process in self._running.values()]

    async def start(self) -> None:
        """Starts the processes, if they are not; nobody has to wait for them."""
        if self._stopped:
            raise RendererStoppedError
        if not self._slots:
            self._slots = [
                asyncio.create_task(self._slot(number)) for number in range(self._processes)
            ]

    async def render(
        self, sources: Sequence[str], variables: bytes, *, fair_key: str
    ) -> list[bytes]:
        """The text of each template as a JSON string.

        variables: a JSON object. fair_key: those who share it share their turns; a tenant, or a
        batch. Raises RenderFailed, RenderTooLarge, RenderTimeout, and RendererStoppedError.
        """
        await self.start()
        if not sources:
            return []
        line = _Line(sources, variables, fair_key)
        self._add(line)
        return await line.result

    async def stop(self) -> None:
        """Ends the processes; lines that are not rendered get RendererStoppedError."""
        self._stopped = True
        for slot in self._slots:
            slot.cancel()
        await asyncio.gather(*self._slots, return_exceptions=True)
        for line in self._turns.all():
            line.fail(RendererStoppedError())

    def _add(self, line: _Line) -> None:
        self._turns.add(line.key, line)
        self._wake()

    def _wake(self) -> None:
        """Has one idle process look for a line."""
        while self._idle:
            idle = self._idle.pop()
            if not idle.done():
                idle.set_result(None)
                break

    async def _slot(self, number: int) -> None:
        """Keeps one process going."""
        pauses = _Pauses()
        #: Whose line ended the last process: its replacement is on that account.
        blame: str | None = None
        while True:
            began = time.monotonic()
            process = TemplateProcess()
            try:
                await asyncio.sleep(pauses.next_s())
                await process.start(self._command, self._settings, START_WALL_S)
                pauses.started()
                self._running[number] = process
                if blame is not None:
                    self._turns.charge(blame, time.monotonic() - began)
                blame = await self._serve(process, pauses)
            except ProcessEndedError as error:
                pauses.not_started()
                _log_not_started(self._command[0], error)
            except Exception as error:  # noqa: BLE001 - a bug; the others' lines go on
                pauses.not_started()
                self._broken(error)
            finally:
                self._running.pop(number, None)
                end = await process.close()
            self._meter.ended(end)
            if end in (End.MISBEHAVED, End.STUCK):
                log.error(
                    "A template process was ended: it did what none of ours does.",
                    action="renderer_misbehaved",
                    reason=end.value,
                )

    async def _serve(self, process: TemplateProcess, pauses: _Pauses) -> str | None:
        """Gives the process lines until it ends; the key of the line that ended it."""
        while (line := await self._next(process)) is not None:
            began = time.monotonic()
            try:
                await self._give(process, line)
                pauses.answered()
            except ProcessEndedError as error:
                self._lost(line, error.end)
                return None if error.end is End.KILLED else line.key
            except Exception:
                line.fail(RenderFailed())
                raise
            finally:
                taken = time.monotonic() - began
                self._turns.charge(line.key, taken)
                self._meter.took(taken)
            if process.ending:
                return line.key
        return None

    async def _next(self, process: TemplateProcess) -> _Line | None:
        """The line whose turn it is, when there is one; None when the process has ended."""
        while not process.ending:
            line = self._turns.pop()
            if line is not None:
                return line
            process.wake = asyncio.get_running_loop().create_future()
            self._idle.append(process.wake)
            await process.wake
        # It may have been woken for a line just before it ended.
        self._wake()
        return None

    async def _give(self, process: TemplateProcess, line: _Line) -> None:
        patience_s = self._line_wall_s
        if not process.knows(line.sources):
            patience_s += COMPILE_WALL_S
        try:
            answer = await process.ask(line.sources, line.variables, patience_s)
        except asyncio.CancelledError:
            line.fail(RendererStoppedError())
            raise
        self._answered(line, answer)

    def _answered(self, line: _Line, answer: Answer) -> None:
        self._meter.answered(answer.status)
        error = _ERRORS.get(answer.status)
        if error is None:
            line.succeed([_encode(text) for text in answer.texts])
        else:
            line.fail(error())

    def _lost(self, line: _Line, end: End) -> None:
        """The line's process ended in it. Killed from outside, a line has one more try."""
        line.kills += end is End.KILLED
        if end is End.KILLED and line.kills == 1 and line.wanted():
            self._add(line)
            return
        self._meter.answered(Status.TIMEOUT)
        line.fail(RenderTimeout())


class _Pauses:
    """How long to wait before a process is started again."""

    def __init__(self) -> None:
        self._failures = 0
        self._most_s = 0.0

    def next_s(self) -> float:
        """The next pause; none the first time, and after a process that answered something."""
        if not self._failures:
            return 0.0
        return min(_FIRST_PAUSE_S * 2.0 ** min(self._failures - 1, 30), self._most_s)

    def started(self) -> None:
        """It could start; whether it can work is not known."""
        if self._most_s == _MAX_START_PAUSE_S:
            self._failures = 0
        self._failures += 1
        self._most_s = _MAX_PAUSE_S

    def answered(self) -> None:
        """It works."""
        self._failures = 0

    def not_started(self) -> None:
        """It could not start."""
        self._failures += 1
        self._most_s = _MAX_START_PAUSE_S


class _Meter:
    """The pool's metrics, looked up once, because labels are slow."""

    def __init__(self, metrics: Metrics) -> None:
        self._renders = {
            status: metrics.counter(RENDERS).labels(status.value)
            for status in (Status.RENDERED, *_ERRORS)
        }
        self._seconds = metrics.histogram(RENDER_SECONDS)
        self._ends = metrics.counter(RENDERER_ENDS)

    def answered(self, status: Status) -> None:
        """A line has its result."""
        self._renders[status].inc()

    def took(self, seconds: float) -> None:
        """A line had a process for so long."""
        self._seconds.observe(seconds)

    def ended(self, end: End) -> None:
        """A process ended."""
        self._ends.labels(end.value).inc()


def _log_not_started(program: str, error: ProcessEndedError) -> None:
    log.error(
        "A template process can't start, and lines that need one wait. Repair what 'why' says; "
        "it is tried again and again.",
        action="renderer_not_started",
        program=program,
        why=error.detail,
    )


def _log_bug(error: BaseException) -> None:
    log.error(
        "Rendering has a bug; please report it.",
        action="renderer_bug",
        error=type(error).__name__,
    )
