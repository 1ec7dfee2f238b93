"""Values of the controller's tables."""

from __future__ import annotations

import msgspec

from schemas.records.batches import AssembleReason, BatchError, BatchStatus, PinnedPrompt
from schemas.records.common import DayUsage, ModelUsage, ObjectRef, Usage


class OpenRetry(msgspec.Struct, frozen=True, kw_only=True):
    """A line that waits for its next attempt."""

    line: int
    attempt: int
    not_before_ms: int


class ChunkRow(msgspec.Struct, frozen=True, kw_only=True):
    """Value of the controller's table 'chunks': the ledger of 512 lines."""

    batch_id: str
    chunk: int
    watermark: int
    accepted: bytes
    completed: int
    failed: int
    usage: Usage = Usage()
    retries: tuple[OpenRetry, ...]
    by_model: tuple[ModelUsage, ...] = ()
    later: tuple[DayUsage, ...] = ()


class BatchRow(msgspec.Struct, frozen=True, kw_only=True):
    """Value of the controller's table 'batches': a batch without its lines, or its stub."""

    batch_id: str
    tenant: str
    watermark: int
    commands: tuple[str, ...]
    status: BatchStatus
    created_at_ms: int
    expires_at_ms: int
    endpoint: str
    input_file_id: str
    input: ObjectRef | None = None
    completion_window: str
    metadata: dict[str, str]
    output_expires_after_s: int | None = None
    request_hash: str
    in_progress_at_ms: int | None = None
    finalizing_at_ms: int | None = None
    completed_at_ms: int | None = None
    failed_at_ms: int | None = None
    expired_at_ms: int | None = None
    cancelling_at_ms: int | None = None
    cancelled_at_ms: int | None = None
    plan: ObjectRef | None = None
    total: int
    models: tuple[str, ...]
    estimated_input_tokens: int
    errors: tuple[BatchError, ...]
    output_file_id: str | None = None
    error_file_id: str | None = None
    reason: AssembleReason = AssembleReason.UNKNOWN
    final_completed: int
    final_failed: int
    final_usage: Usage = Usage()
    prompts: tuple[PinnedPrompt, ...] = ()
    unused_variables: int = 0
    priority: int = 0
    paused_at_ms: int | None = None
    origin_batch_id: str | None = None
    final_by_model: tuple[ModelUsage, ...] = ()
    final_later: tuple[DayUsage, ...] = ()
    frozen_prefix: int = 0
    kafka_key: str | None = None
    key_id: str | None = None
    estimated_cost_micros: int | None = None
