"""What a template process and its parent say to each other, on pipes.

frame  =  length in four bytes (big-endian), then one MessagePack array

child   Answer(ready)                  once
parent  Job                     ┐
child   Answer(rendered, …)     ┘      again and again; a child has one job at a time
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

HEADER_BYTES = 4


class Status(StrEnum):
    """How a job went."""

    #: No job: the process has started and waits for one.
    READY = "ready"
    RENDERED = "rendered"
    #: An operation of a template does not work with the values given.
    FAILED = "failed"
    TOO_LARGE = "too_large"
    #: It took too much time or memory.
    TIMEOUT = "timeout"


class Job(msgspec.Struct, array_like=True, frozen=True):
    """One line. Templates are sent once and then called by number, from 0 in order of arrival.

    forget: first forget all templates, and count from 0 again. templates: new ones.
    wanted: numbers of those to render. variables: a JSON object.
    """

    forget: bool
    templates: tuple[str, ...]
    wanted: tuple[int, ...]
    variables: bytes


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """What became of a job. last: the process ends now and must be replaced."""

    status: Status
    texts: tuple[str, ...] = ()
    last: bool = False


_encode = msgspec.msgpack.Encoder().encode


def frame(message: Job | Answer) -> bytes:
    """The message with its length. Raises UnicodeEncodeError for half characters."""
    body = _encode(message)
    return len(body).to_bytes(HEADER_BYTES, "big") + body
