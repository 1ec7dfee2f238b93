"""What several kinds of record are made of."""

from __future__ import annotations

import msgspec


class ObjectRef(msgspec.Struct, frozen=True, kw_only=True):
    """A whole object in the object store."""

    key: str
    size_bytes: int
    sha256: str | None = None


class ClaimCheck(msgspec.Struct, frozen=True, kw_only=True):
    """A byte range of a stored object, in place of bytes too large to travel in Kafka."""

    key: str
    offset: int
    length: int
    sha256: str | None = None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts, as the upstream reported them after bounds were checked."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


class ModelUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts of one model's lines."""

    model: str
    usage: Usage


class DayUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts of one model's lines that came on one UTC day."""

    day: int
    model: str
    usage: Usage
