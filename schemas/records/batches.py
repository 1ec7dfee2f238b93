"""What happens to a batch, the tasks that follow, and what the API shows of it."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from schemas.records.common import DayUsage, ModelUsage, ObjectRef, Usage


class PinnedPrompt(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt version that lines of a batch use, fixed when the batch was validated."""

    slug: str
    version: int
    lines: int


class BatchValidated(msgspec.Struct, frozen=True, kw_only=True):
    """Event: the file-worker found the input file good and wrote its plan."""

    task_id: str
    batch_id: str
    tenant: str
    at_ms: int
    plan: ObjectRef
    total: int
    models: tuple[str, ...]
    estimated_input_tokens: int
    prompts: tuple[PinnedPrompt, ...] = ()
    unused_variables: int = 0


class BatchError(msgspec.Struct, frozen=True, kw_only=True):
    """One validation error, as shown in the batch's errors.data[]."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchRejected(msgspec.Struct, frozen=True, kw_only=True):
    """Event: the input file is bad; the batch fails once with all these errors."""

    task_id: str
    batch_id: str
    tenant: str
    at_ms: int
    errors: tuple[BatchError, ...]


class AssembledFile(msgspec.Struct, frozen=True, kw_only=True):
    """An output or error file, as assembly wrote it."""

    file_id: str
    object: ObjectRef
    lines: int


class BatchAssembled(msgspec.Struct, frozen=True, kw_only=True):
    """Event: output and error files are written; the first folded wins."""

    task_id: str
    batch_id: str
    tenant: str
    at_ms: int
    output: AssembledFile | None = None
    error: AssembledFile | None = None
    manifest: ObjectRef | None = None
    lost: int = 0


class BatchWindowEnded(msgspec.Struct, frozen=True, kw_only=True):
    """Event: the completion window is over; written by the controller's clock."""

    batch_id: str
    tenant: str
    at_ms: int


class IntakeTask(msgspec.Struct, frozen=True, kw_only=True):
    """Task: validate an input file and write its plan."""

    task_id: str
    batch_id: str
    tenant: str
    at_ms: int
    endpoint: str
    input: ObjectRef
    deadline_ms: int


class AssembleReason(StrEnum):
    """Why the set of lines was frozen."""

    UNKNOWN = "unknown"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class AssembleTask(msgspec.Struct, frozen=True, kw_only=True):
    """Task: merge a batch's segments into its output and error files; its lines are frozen."""

    task_id: str
    batch_id: str
    tenant: str
    at_ms: int
    reason: AssembleReason
    input: ObjectRef | None = None
    plan: ObjectRef | None = None
    total: int
    accepted: bytes
    completed: int
    failed: int


class BatchStatus(StrEnum):
    """The batch's status, as the API shows it."""

    UNKNOWN = "unknown"
    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class BatchSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The whole batch as the API shows it."""

    batch_id: str
    tenant: str
    revision: int
    status: BatchStatus
    created_at_ms: int
    expires_at_ms: int
    endpoint: str
    input_file_id: str
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
    model: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: tuple[BatchError, ...]
    total: int
    completed: int
    failed: int
    usage: Usage = Usage()
    prompts: tuple[PinnedPrompt, ...] = ()
    unused_variables: int = 0
    priority: int = 0
    paused_at_ms: int | None = None
    commands: tuple[str, ...] = ()
    estimated_input_tokens: int = 0
    origin_batch_id: str | None = None
    accepted_prefix: int = 0
    usage_by_model: tuple[ModelUsage, ...] = ()
    usage_of_later_days: tuple[DayUsage, ...] = ()
    kafka_key: str | None = None
    key_id: str | None = None
    estimated_cost_micros: int | None = None
    output: ObjectRef | None = None
    error: ObjectRef | None = None
