"""Stands in for the sandbox in a template process, and does what no allowed template can."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from streams.domain.prompts.template import MAX_RENDERED_BYTES
from streams.rendering.child import serve
from streams.rendering.frames import Answer, Status, frame

#: The `module` of a Renderer whose templates are names of the deeds below.
MODULE = __name__
_STDOUT = 1
_used = b""


def run(settings: Mapping[str, Any]) -> None:
    """Serves until the input ends."""
    serve(Stubborn(), settings)


class Stubborn:
    """Renders the name of a deed by doing it, with the variables as its arguments."""

    def prepare(self, source: str) -> None:
        """Compiling is a deed, too, if the name says so."""
        if source == "compile for ever":
            _spin()

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        """What the deed returns, if it does."""
        return str(_DEEDS[source](**variables))


def _spin() -> NoReturn:
    while True:
        pass


def _hold(error: type[BaseException]) -> NoReturn:
    while True:
        try:
            _spin()
        except error:
            continue


def _eat() -> NoReturn:
    eaten = []
    while True:
        eaten.append(b"\1" * (1 << 20))


def _use(mib: int) -> str:
    global _used
    _used = bytes(range(256)) * (mib * 4096)
    return str(os.getpid())


def _sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "awake"


def _recurse() -> str:
    return _recurse() + "."


def _close() -> None:
    os.close(_STDOUT)
    time.sleep(3600)


def _say(data: bytes) -> Callable[..., str]:
    def say(**_: object) -> str:
        os.write(_STDOUT, data)
        return "said"

    return say


def _open() -> str:
    tried: list[Callable[[], object]] = [Path("/etc/hostname").read_text, socket.socket, os.pipe]
    failed = 0
    for attempt in tried:
        try:
            attempt()
        except OSError:
            failed += 1
    return f"{failed} of {len(tried)} refused"


_DEEDS: dict[str, Callable[..., object]] = {
    "echo": lambda **variables: variables["text"],
    "repeat": lambda text, times: text * times,
    "pid": os.getpid,
    "environment": lambda: " ".join(sorted(os.environ)),
    "spin": _spin,
    "spin in C": lambda: sum(range(10**15)),
    "hold on": lambda: _hold(BaseException),
    "recurse": _recurse,
    "eat": _eat,
    "eat at once": lambda: bytes(1 << 40),
    "use": _use,
    "crash": lambda **_: os.abort(),
    "exit": lambda: os._exit(3),
    "exit quietly": lambda: os._exit(0),
    "sleep": _sleep,
    "open": _open,
    "close": _close,
    "say garbage": _say(b"\0\0\0\3\xff\xff\xff"),
    "say much": _say(b"\x7f\xff\xff\xff"),
    "say ready": _say(frame(Answer(Status.READY))),
    "say too few": _say(frame(Answer(Status.RENDERED))),
    "say too much": _say(frame(Answer(Status.RENDERED, ("x" * (MAX_RENDERED_BYTES + 1),)))),
    "say half a character": _say(b"\0\0\0\x11\x93\xa8rendered\x91\xa3\xed\xa0\x80\xc2"),
    "say twice": _say(frame(Answer(Status.FAILED)) * 2),
}
