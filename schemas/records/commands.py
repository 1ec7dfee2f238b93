"""What callers ask of a batch."""

from __future__ import annotations

import msgspec

from schemas.records.common import ObjectRef


class BatchCreate(msgspec.Struct, frozen=True, kw_only=True):
    """Command: create a batch. Written by gateways, re-emitted onto batch.event."""

    command_id: str
    batch_id: str
    tenant: str
    at_ms: int
    endpoint: str
    input_file_id: str
    input: ObjectRef | None = None
    input_purpose: str | None = None
    completion_window: str
    window_s: int
    metadata: dict[str, str]
    output_expires_after_s: int | None = None
    request_hash: str
    priority: int = 0
    origin_batch_id: str | None = None
    kafka_key: str | None = None
    key_id: str | None = None
    estimated_cost_micros: int | None = None


class BatchCancel(msgspec.Struct, frozen=True, kw_only=True):
    """Command: cancel a batch."""

    command_id: str
    batch_id: str
    tenant: str
    at_ms: int


class BatchPause(msgspec.Struct, frozen=True, kw_only=True):
    """Command: release no new line of a batch until it is resumed."""

    command_id: str
    batch_id: str
    tenant: str
    at_ms: int


class BatchResume(msgspec.Struct, frozen=True, kw_only=True):
    """Command: go on with a paused batch."""

    command_id: str
    batch_id: str
    tenant: str
    at_ms: int


class BatchChange(msgspec.Struct, frozen=True, kw_only=True):
    """Command: change a batch that has not ended; what is None stays as it is."""

    command_id: str
    batch_id: str
    tenant: str
    at_ms: int
    priority: int | None = None
    expires_at_ms: int | None = None
