"""One request whose client waits at this gateway, from its record to the last byte of its answer.

    waiting ─► accepted ─► head ─► data … ─► ended
       └──────────┴─────────┴───────┴──────► failed (an ApiError), or the client is gone

Parts are numbered; what comes twice is passed over, and a part that is missing is the end of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from enum import StrEnum

from api.errors import ApiError, BadGateway, GatewayTimeout, Unavailable
from schemas.records import RealtimeReplies, RealtimeReply, RealtimeRequest, ReplyKind
from streams.domain.failures import FailureReason

#: Media type of an answer that is passed on while it is made.
EVENTS = "text/event-stream"
_NO_RETRY = {"x-should-retry": "false"}


class Result(StrEnum):
    """How a request ended; values are metric labels."""

    ANSWERED = "answered"
    REFUSED = "refused"
    GONE = "gone"
    SLOW = "slow"
    NO_WORKER = "no_worker"
    WORKER_LOST = "worker_lost"
    TIMEOUT = "timeout"
    FAILED = "failed"
    STOPPED = "stopped"


class ClientGoneError(ConnectionResetError):
    """The client closed its connection, or reads too slowly to go on."""


class Pending:
    """A request that waits. Fed by the lane; read by the one handler that answers it."""

    def __init__(self, request: RealtimeRequest, max_held_bytes: int) -> None:
        self.request = request
        #: The worker that accepted it, and which start of that worker.
        self.worker: tuple[str, str] | None = None
        self.accepted_at_s = 0.0
        #: What became of it; None while it is open.
        self.result: Result | None = None
        #: Called when the client is too slow, to interrupt whoever writes to it.
        self.on_slow: Callable[[], None] = lambda: None
        self._max_held_bytes = max_held_bytes
        self._expected = 0
        self._head: RealtimeReply | None = None
        self._held: deque[bytes] = deque()
        self._held_bytes = 0
        self._error: ApiError | ClientGoneError | None = None
        self._changed = asyncio.Event()

    @property
    def wanted(self) -> bool:
        """Whether the client still waits and parts may still come."""
        return self.result is None

    def offer(self, record: RealtimeReplies, part: RealtimeReply, now_s: float) -> None:
        """Takes a part of the answer."""
        worker = (record.worker, record.process)
        if self.worker is None and part.kind is ReplyKind.ACCEPTED:
            self.worker, self.accepted_at_s = worker, now_s
        if not self.wanted or self.worker != worker or part.sequence < self._expected:
            return
        if part.sequence > self._expected:
            self.fail(Result.WORKER_LOST, worker_lost())
            return
        self._expected += 1
        match part.kind:
            case ReplyKind.HEAD:
                self._head = part
            case ReplyKind.DATA:
                self._hold(part.data)
            case ReplyKind.END:
                head = self._head
                refused = head is None or head.status >= 400
                self.result = Result.REFUSED if refused else Result.ANSWERED
            case ReplyKind.FAILED:
                self.fail(Result.FAILED, _failure(part.reason))
            case ReplyKind.ACCEPTED | ReplyKind.UNKNOWN:
                return
        self._changed.set()

    def fail(self, result: Result, error: ApiError | ClientGoneError) -> None:
        """There will be no answer, or no more of it."""
        if self.wanted:
            self.result, self._error = result, error
            self._changed.set()

    def abandon(self) -> None:
        """The client is gone."""
        self.fail(Result.GONE, ClientGoneError())

    async def head(self) -> RealtimeReply:
        """How the answer begins. Raises ApiError or ClientGoneError if it never does."""
        while self._head is None:
            if self.result is not None:
                raise self._error or BadGateway("The model server gave no answer.")
            await self._wait()
        return self._head

    async def data(self) -> bytes | None:
        """What came since the last call, not empty; None after the end. Raises as head() does."""
        while not self._held:
            if self._error is not None:
                raise self._error
            if self.result is not None:
                return None
            await self._wait()
        found = b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        return found

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        self._held_bytes += len(data)
        streamed = self._head is not None and self._head.content_type == EVENTS
        if streamed and self._held_bytes > self._max_held_bytes:
            # An answer that is not streamed is bounded by the worker.
            self.fail(Result.SLOW, ClientGoneError())
            self.on_slow()


def no_worker() -> Unavailable:
    """The error when nobody took the request."""
    return Unavailable("No worker took the request; try again in a moment.", code="no_worker")


def stopped() -> Unavailable:
    """The error when this gateway stops before the answer is whole."""
    return Unavailable("This server stops; try again.", code="server_stopping")


def worker_lost() -> Unavailable:
    """The error when the worker is gone that had it."""
    return Unavailable("The worker that ran this request is gone.", code="worker_lost")


def too_late() -> GatewayTimeout:
    """The error when it took too long."""
    return GatewayTimeout(
        "The model did not answer this request in time.", code="request_timeout", headers=_NO_RETRY
    )


def _failure(reason: str) -> ApiError:
    match reason:
        case FailureReason.TIMEOUT:
            return too_late()
        case FailureReason.UNREACHABLE:
            return Unavailable(
                "The model server could not be reached, or broke off.", code="upstream_unreachable"
            )
        case FailureReason.RESPONSE_TOO_LARGE:
            return BadGateway(
                "The model server's answer was larger than this server allows.",
                code="response_too_large",
                headers=_NO_RETRY,
            )
    return BadGateway("The model server's answer was not valid.", code="upstream_invalid_response")
