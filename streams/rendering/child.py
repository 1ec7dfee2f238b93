"""The loop of a template process: reads a job, renders it within its limits, answers.

    SIGPROF    at the line's CPU time: raises in the template, the line is answered as a timeout
    SIGVTALRM  at a multiple of it: the kernel ends the process, whatever it is stuck in
    SIGXCPU    the same for time spent in the kernel, in whole seconds

After a timeout the process ends and is replaced: what was interrupted is in no known state. When
its input ends, it ends; so it outlives its parent by one job at most.
"""

from __future__ import annotations

import contextlib
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

from streams.domain.prompts.sandbox import Sandbox
from streams.domain.prompts.template import (
    MAX_RENDERED_BYTES,
    RenderError,
    RenderTimeout,
    RenderTooLarge,
)
from streams.rendering.boot import limit
from streams.rendering.frames import HEADER_BYTES, Answer, Job, Status, frame

#: CPU time at which the kernel ends a process, as a multiple of the budget it ignored.
_HARD_FACTOR = 3
#: Share of its memory that may be in use between two lines: the next one must not lack it.
_WORN_SHARE = 0.5
#: Memory is looked at after so much CPU time, because looking takes as long as a small line.
_LOOK_CPU_S = 0.01
_INPUT, _OUTPUT, _ERRORS = 0, 1, 2
_READ_BYTES = 1 << 20
_MAX_FILES = 64
#: All that a lexer or compiler may load late is in it: a text with an escape, numbers, a filter.
_WARM_UP = "{% for i in items if i.a != 'é\\n' %}{{ i.a|upper ~ 1 ~ 2.5 is string }}{% endfor %}"

_decode_job = msgspec.msgpack.Decoder(Job).decode


class Templates(Protocol):
    """What renders: streams.domain.prompts.sandbox.Sandbox, or a test's stand-in."""

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
    memory = Memory(int(settings["memory_bytes"]))
    worker = Worker(templates, settings, memory)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Meant for the whole service. We end when the parent lets go of us: it may still need us.
        signal.signal(number, signal.SIG_IGN)
    # From here on nothing may be said on it: it could be a caller's text.
    os.dup2(os.open(os.devnull, os.O_RDWR), _ERRORS)
    sys.stdout = sys.stderr = None
    _only_these_files(memory.file)
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

    def __init__(self, templates: Templates, settings: Mapping[str, Any], memory: Memory) -> None:
        self._templates = templates
        self._memory = memory
        self._line_cpu_s = float(settings["line_cpu_s"])
        self._compile_cpu_s = float(settings["compile_cpu_s"])
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
            return Answer(Status.TIMEOUT, last=self._memory.is_short())
        except RenderTooLarge:
            return Answer(Status.TOO_LARGE, last=self._memory.is_short())
        except Exception:  # noqa: BLE001 - a stranger's program: whatever it is, it failed
            return Answer(Status.FAILED, last=self._memory.is_short())
        return Answer(Status.RENDERED, texts, self._memory.is_short())

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


class Memory:
    """How much of this process's memory is in use, as the kernel counts it."""

    def __init__(self, allowed_bytes: int) -> None:
        try:
            self.file = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            # Not Linux. The limit itself may hold there; what wears is not seen.
            self.file = -1
        self._looked_at_s = 0.0
        self._most_pages = self._pages() + _WORN_SHARE * allowed_bytes / resource.getpagesize()

    def is_short(self) -> bool:
        """Whether the next line might lack memory; looks if that can have changed."""
        now_s = time.process_time()
        if now_s - self._looked_at_s < _LOOK_CPU_S:
            return False
        self._looked_at_s = now_s
        return self._pages() > self._most_pages

    def _pages(self) -> int:
        return int(os.pread(self.file, 64, 0).split(b" ", 1)[0]) if self.file >= 0 else 0


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
    sandbox.render(_WARM_UP, {"items": [{"a": "b"}]})
    for broken in ({}, {"items": [1]}):
        try:
            sandbox.render(_WARM_UP, broken)
        except RenderError:
            continue


def _only_these_files(*files: int) -> None:
    """Closes all but the pipes and these; from here on neither file nor socket can be opened."""
    kept = {_INPUT, _OUTPUT, _ERRORS, *files}
    most = max(kept) + 1
    for number in range(_ERRORS + 1, _MAX_FILES):
        if number not in kept:
            with contextlib.suppress(OSError):
                os.close(number)
    # What is free below the limit is filled with what is harmless.
    while True:
        number = os.dup(_ERRORS)
        if number >= most:
            os.close(number)
            break
    limit(resource.RLIMIT_NOFILE, most)


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


def _refuse(_constant: str) -> NoReturn:
    raise ValueError("not JSON")
