"""The real-time lane: requests, parts of answers, clients that left."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class RealtimeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One real-time request: a client waits for it at a gateway."""

    request_id: str
    tenant: str
    gateway: str
    reply_partition: int
    at_ms: int
    accept_by_ms: int
    deadline_ms: int
    endpoint: str
    pool: str
    model: str
    stream: bool
    body: bytes


class ReplyKind(StrEnum):
    """What a part of a real-time answer is."""

    UNKNOWN = "unknown"
    ACCEPTED = "accepted"
    HEAD = "head"
    DATA = "data"
    END = "end"
    FAILED = "failed"


class RealtimeReply(msgspec.Struct, frozen=True, kw_only=True):
    """One part of one answer."""

    request_id: str
    sequence: int
    kind: ReplyKind
    status: int = 0
    content_type: str = ""
    data: bytes = b""
    reason: str = ""
    retry_after_s: int = 0


class RealtimeReplies(msgspec.Struct, frozen=True, kw_only=True):
    """Parts of answers for one gateway that came close together at one worker."""

    gateway: str
    worker: str
    process: str
    at_ms: int
    replies: tuple[RealtimeReply, ...]


class RealtimeCancel(msgspec.Struct, frozen=True, kw_only=True):
    """A client went away, or was told an error: its upstream call is to be cut."""

    request_id: str
    gateway: str
    at_ms: int
    client_left: bool = False
