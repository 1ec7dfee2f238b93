"""The model server: one request in, one bounded answer out, whole or as it comes.

InferenceError
├── UnreachableError       no connection in time, or it broke in the middle of an answer
│   └── BlipError          refused or reset before any byte of an answer
├── TimedOutError          no whole answer in time
├── BadAnswerError         what came back is not HTTP
└── TooLargeError          the answer is larger than the upstream table allows
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import ClassVar, Protocol

from streams.domain.failures import FailureReason
from streams.domain.outcome.judge import Answer


class InferenceError(Exception):
    """A call brought no usable answer. Carries no content of request or answer."""

    reason: ClassVar[FailureReason] = FailureReason.UNREACHABLE


class UnreachableError(InferenceError):
    """The upstream could not be reached, or cut the connection."""


class BlipError(UnreachableError):
    """The connection was refused or reset before any byte of an answer: try again at once."""


class TimedOutError(InferenceError):
    """The upstream did not answer in time."""

    reason = FailureReason.TIMEOUT


class BadAnswerError(InferenceError):
    """The upstream answered something that is not HTTP."""

    reason = FailureReason.INVALID_RESPONSE


class TooLargeError(InferenceError):
    """The upstream's answer is larger than max_response_bytes."""

    reason = FailureReason.RESPONSE_TOO_LARGE


class Stream(Protocol):
    """An answer that has begun: its status and headers are there, its bytes follow."""

    @property
    def status(self) -> int: ...

    @property
    def content_type(self) -> str:
        """The media type, without parameters; empty if the upstream gave none."""
        ...

    @property
    def retry_after(self) -> str: ...

    @property
    def retry_after_ms(self) -> str: ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The bytes as they arrive, none of them empty. Read once. Raises InferenceError."""
        ...


class InferenceClient(Protocol):
    """One upstream. Any number of calls may run at once; the caller bounds them."""

    async def send(self, path: str, body: bytes) -> Answer:
        """POSTs a JSON body to an API path such as '/v1/chat/completions'.

        Returns any answer, whatever its status; redirects are not followed. Raises
        InferenceError. Cancelling it cuts the connection.
        """
        ...

    def open(self, path: str, body: bytes) -> AbstractAsyncContextManager[Stream]:
        """send(), but for an answer that is read while it is made.

        Entering raises InferenceError as send() does, until the answer's headers are there;
        chunks() raises it afterwards. max_response_bytes and request_timeout_s hold for the
        whole answer. Leaving early cuts the connection.
        """
        ...

    async def close(self) -> None:
        """Closes every connection. Idempotent."""
        ...
