"""Recording what the simulated server was sent, byte for byte, for tests that check the bodies.

Off by default: bodies are callers' content. Each request is one JSON line, written before its
answer begins, so that it is there even if its caller was killed.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from streams.simulator.call import Call

_encode = msgspec.json.Encoder().encode


class BodyLine(msgspec.Struct):
    """One line of the record. body: the bytes as text; what is not UTF-8 is written as \\xNN.

    number, key and attempt are those of the request log; null if the body could not be read.
    """

    number: int | None
    key: str | None
    attempt: int | None
    path: str
    body: str


class BodyLog:
    """Appends bodies to a file. Raises OSError if it can't be opened."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def record(self, path: str, body: bytes, call: Call | None) -> None:
        """Writes one request; call is None if its body was refused."""
        line = BodyLine(
            number=None if call is None else call.number,
            key=None if call is None else call.key,
            attempt=None if call is None else call.attempt,
            path=path,
            body=body.decode(errors="backslashreplace"),
        )
        data = _encode(line) + b"\n"
        written = os.write(self._file, data)
        while written < len(data):
            written += os.write(self._file, data[written:])

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)
