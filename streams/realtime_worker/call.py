"""One request at this worker: what it asks, and the parts of its answer as they are sent.

accepted ─► head ─► data … ─► end
    └─────────┴───────┴─────► failed
"""

from __future__ import annotations

from schemas.records import RealtimeReply, RealtimeRequest, ReplyKind, Usage
from streams.domain.failures import FailureReason
from streams.domain.outcome.streamed import Used
from streams.realtime_worker.events import Events
from streams.realtime_worker.replies import MAX_PART_BYTES, Destination, Replies


class Call:
    """A request that was accepted. Its parts are numbered here."""

    def __init__(self, request: RealtimeRequest, replies: Replies) -> None:
        self.request = request
        self._replies = replies
        self._to = Destination(request.gateway, request.reply_partition)
        self._sequence = 0
        #: What came of a streamed answer.
        self.events: Events | None = None
        #: Whether its client is gone, and no error was told.
        self.client_left = False

    @property
    def used(self) -> Used | None:
        """What a stream used till now; None before there is one."""
        if self.events is None:
            return None
        return self.events.used(self.request.body, self.request.endpoint)

    @property
    def given(self) -> Used | None:
        """What its client has got of a stream that breaks off, and pays; None if nothing."""
        used = self.used
        return None if used is None or used.usage == Usage() else used

    def accept(self) -> None:
        """Tells the gateway that this worker has it; for that, 25 ms more are soon enough."""
        self._add(ReplyKind.ACCEPTED, urgent=False)

    def head(self, status: int, content_type: str, retry_after_s: int) -> None:
        """Passes on how the answer begins; it travels with what follows."""
        self._sequence += 1
        self._replies.add(
            self._to,
            RealtimeReply(
                request_id=self.request.request_id,
                sequence=self._sequence - 1,
                kind=ReplyKind.HEAD,
                status=status,
                content_type=content_type,
                retry_after_s=retry_after_s,
            ),
            urgent=False,
        )

    async def data(self, data: bytes, *, urgent: bool) -> None:
        """Passes on bytes of the answer; waits while too many are on their way."""
        for at in range(0, len(data), MAX_PART_BYTES):
            await self._replies.room(self._to)
            self._add(ReplyKind.DATA, urgent=urgent, data=data[at : at + MAX_PART_BYTES])

    def end(self, *, urgent: bool) -> None:
        """The answer is whole."""
        self._add(ReplyKind.END, urgent=urgent)

    def fail(self, reason: FailureReason) -> None:
        """There will be no answer, or no more of it."""
        self._add(ReplyKind.FAILED, urgent=True, reason=reason.value)

    def _add(self, kind: ReplyKind, *, urgent: bool, data: bytes = b"", reason: str = "") -> None:
        part = RealtimeReply(
            request_id=self.request.request_id,
            sequence=self._sequence,
            kind=kind,
            data=data,
            reason=reason,
        )
        self._sequence += 1
        self._replies.add(self._to, part, urgent=urgent)
