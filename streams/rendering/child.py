"""The loop of a template process: reads a job, renders it within its limits, answers.

    SIGPROF    at the line's CPU time: raises in the template, the line is answered as a timeout
    SIGVTALRM  at a multiple of it: the kernel ends the process, whatever it is stuck in
    SIGXCPU    the same for time spent in the kernel, in whole seconds

After a timeout the process ends and is replaced: what was interrupted is in no known state. When
its input ends, it ends; so it outlives its parent by one job at most.
"""

from __future__ import annotations

import gc
import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NoReturn, Protocol

import msgspec

from streams.domain.prompt_sandbox import Sandbox
from streams.domain.prompt_template import (
    MAX_RENDERED_BYTES,
    RenderError,
    RenderTimeout,
    RenderTooLarge,
)
from streams.rendering.boot import limit
from streams.rendering.frames import HEADER_BYTES, Answer, Job, Status, frame

#: CPU time at which the kernel ends a process, as a multiple of the budget it ignored.
_HARD_FACTOR = 3
#: Share of its memory that a process may have used at most to be trusted with another line.
_WORN_SHARE = 0.5
_INPUT, _OUTPUT, _ERRORS = 0, 1, 2
_READ_BYTES = 1 << 20
_WARM_UP = "{% for item in items %}{{ item.name|upper }}{% endfor %}"

_decode_job = msgspec.msgpack.Decoder(Job).decode


class Templates(Protocol):
    """What renders: streams.domain.prompt_sandbox.Sandbox, or a test's stand-in."""

    def prepare(self, source: str) -> None:
        """Compiles a template."""

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        """Its text."""


class OutOfTimeError(BaseException):
    """The budget is used up. No Exception, so that nothing on the way takes it for its own."""


def run(settings: Mapping[str, Any]) -> None:
    """Serves until the input ends."""
    sandbox = Sandbox()
    _warm_up(sandbox)
    serve(sandbox, settings)


def serve(templates: Templates, settings: Mapping[str, Any]) -> None:
    """Says that it is ready, gives up files, and works. Returns when the input ends."""
    worker = Worker(templates, settings)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Meant for the whole service. We end when the parent lets go of us: it may still need us.
        signal.signal(number, signal.SIG_IGN)
    # From here on nothing may be said on it: it could be a caller's text.
    os.dup2(os.open(os.devnull, os.O_RDWR), _ERRORS)
    sys.stdout = sys.stderr = None
    os.closerange(_ERRORS + 1, _ERRORS + 64)
    # All descriptors are in use, so nothing can be opened any more, neither file nor socket.
    limit(resource.RLIMIT_NOFILE, _ERRORS + 1)
    gc.collect()
    gc.freeze()
    try:
        _send(Answer(Status.READY))
        while (job := _next_job()) is not None:
            answer = worker.answer(job)
            _send(answer)
            if answer.last:
                return
    except BrokenPipeError:
        return


class Worker:
    """Renders jobs with the templates that it was told."""

    def __init__(self, templates: Templates, settings: Mapping[str, Any]) -> None:
        self._templates = templates
        self._line_cpu_s = float(settings["line_cpu_s"])
        self._compile_cpu_s = float(settings["compile_cpu_s"])
        self._worn_bytes: float = _peak_bytes() + _WORN_SHARE * settings["memory_bytes"]
        self._sources: list[str] = []
        self._budget = Budget()

    def answer(self, job: Job) -> Answer:
        """Renders, whatever comes."""
        try:
            if job.forget:
                self._sources.clear()
            if job.templates:
                self._sources += job.templates
                self._budget.within(self._compile_cpu_s, lambda: self._prepare(job.templates))
            texts = self._budget.within(self._line_cpu_s, lambda: self._render(job))
        except (OutOfTimeError, MemoryError):
            return Answer(Status.TIMEOUT, last=True)
        except RenderTimeout:
            return Answer(Status.TIMEOUT, last=self._worn())
        except RenderTooLarge:
            return Answer(Status.TOO_LARGE, last=self._worn())
        except Exception:  # noqa: BLE001 - a stranger's program: whatever it is, it failed
            return Answer(Status.FAILED, last=self._worn())
        return Answer(Status.RENDERED, texts, self._worn())

    def _prepare(self, sources: tuple[str, ...]) -> None:
        for source in sources:
            try:
                self._templates.prepare(source)
            except RenderError:
                # Lines that want it will find out.
                continue

    def _render(self, job: Job) -> tuple[str, ...]:
        variables = json.loads(job.variables, parse_constant=_refuse)
        texts = []
        size = 0
        for number in job.wanted:
            text = self._templates.render(self._sources[number], variables)
            size += len(text) if text.isascii() else len(text.encode())
            if size > MAX_RENDERED_BYTES:
                raise RenderTooLarge
            texts.append(text)
        return tuple(texts)

    def _worn(self) -> bool:
        """Whether it once used so much memory that the next line might lack it."""
        return self._worn_bytes < _peak_bytes()


class Budget:
    """CPU time for a piece of work; in the main thread, one at a time."""

    def __init__(self) -> None:
        self._armed = False
        signal.signal(signal.SIGPROF, self._over)
        signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)

    def within(self, cpu_s: float, work: Callable[[], Any]) -> Any:
        """What `work` returns. Raises OutOfTimeError in it; then this process must end."""
        self._backstop(cpu_s)
        try:
            self._armed = True
            signal.setitimer(signal.ITIMER_PROF, cpu_s)
            signal.setitimer(signal.ITIMER_VIRTUAL, cpu_s * _HARD_FACTOR)
            return work()
        finally:
            self._armed = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    def _over(self, _signal: int, _frame: FrameType | None) -> None:
        # A signal that was on its way when the work ended finds nothing to stop.
        if self._armed:
            raise OutOfTimeError

    def _backstop(self, cpu_s: float) -> None:
        """The limit counts the whole life of the process, so it moves on with every line."""
        most = math.ceil(time.process_time() + cpu_s * _HARD_FACTOR) + 1
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(resource.RLIMIT_CPU, (most, hard))


def _warm_up(sandbox: Sandbox) -> None:
    """Has Jinja2 import what it imports late: after this no file can be opened."""
    sandbox.prepare(_WARM_UP)
    sandbox.render(_WARM_UP, {"items": [{"name": "a"}]})
    for broken in ({}, {"items": [1]}):
        try:
            sandbox.render(_WARM_UP, broken)
        except RenderError:
            continue


def _next_job() -> Job | None:
    """The next job; None when the input has ended."""
    header = _read(HEADER_BYTES)
    body = _read(int.from_bytes(header, "big")) if header else b""
    return _decode_job(body) if body else None


def _read(size: int) -> bytes:
    """So many bytes; none if the input ends before."""
    first = os.read(_INPUT, min(size, _READ_BYTES))
    if len(first) == size:
        return first
    pieces = [first]
    missing = size - len(first)
    while missing and pieces[-1]:
        pieces.append(os.read(_INPUT, min(missing, _READ_BYTES)))
        missing -= len(pieces[-1])
    return b"" if missing else b"".join(pieces)


def _send(answer: Answer) -> None:
    try:
        left = memoryview(frame(answer))
    except UnicodeEncodeError:
        left = memoryview(frame(Answer(Status.FAILED, last=answer.last)))
    while left:
        left = left[os.write(_OUTPUT, left) :]


def _peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _refuse(_constant: str) -> NoReturn:
    raise ValueError("not JSON")
