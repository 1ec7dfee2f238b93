"""The typed form of every record on a topic and of every table value.

A record's fields, their units and meaning are documented once, in its `.avsc` file under
`schemas/avro/<Record>/`; the tests hold the two against each other. Times are Unix
milliseconds (`_ms`), sizes bytes, line numbers 0-based, unless a field's doc says otherwise.
"""

from __future__ import annotations

from schemas.records.batches import (
    AssembledFile,
    AssembleReason,
    AssembleTask,
    BatchAssembled,
    BatchError,
    BatchRejected,
    BatchSnapshot,
    BatchStatus,
    BatchValidated,
    BatchWindowEnded,
    IntakeTask,
    PinnedPrompt,
)
from schemas.records.billing import (
    BillingCommand,
    BillingCommandKind,
    BillingCustomer,
    BillingDecision,
    BillingReport,
    BillingReportError,
    MeterChunkRow,
    MeteredUsage,
    MeterSend,
    SendState,
)
from schemas.records.commands import BatchCancel, BatchChange, BatchCreate, BatchPause, BatchResume
from schemas.records.common import ClaimCheck, DayUsage, ModelUsage, ObjectRef, Usage
from schemas.records.forecasts import BatchForecast, BatchForecasts, BudgetHold
from schemas.records.lines import (
    CollectedLine,
    DoneLines,
    LineUsage,
    Outcome,
    OutcomeKind,
    ReadyLine,
    ReadyLines,
    SegmentWritten,
    UsageRecorded,
)
from schemas.records.loads import (
    ControllerLoad,
    DueLines,
    PartitionSeen,
    PoolBacklog,
    PoolLoad,
    RealtimeLoad,
    RealtimePoolLoad,
    WorkerLoad,
)
from schemas.records.realtime import (
    RealtimeCancel,
    RealtimeReplies,
    RealtimeReply,
    RealtimeRequest,
    ReplyKind,
)
from schemas.records.registry import (
    ApiKeyRecord,
    FileRecord,
    PromptHead,
    PromptVersion,
    PromptVersionRef,
    TenantRecord,
)
from schemas.records.tables import BatchRow, ChunkRow, OpenRetry
from schemas.records.webhooks import (
    BatchEnded,
    DeliveryState,
    OldSecret,
    WebhookCommand,
    WebhookCommandKind,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookState,
)

__all__ = [
    "RECORDS",
    "ApiKeyRecord",
    "AssembleReason",
    "AssembleTask",
    "AssembledFile",
    "BatchAssembled",
    "BatchCancel",
    "BatchChange",
    "BatchCreate",
    "BatchEnded",
    "BatchError",
    "BatchForecast",
    "BatchForecasts",
    "BatchPause",
    "BatchRejected",
    "BatchResume",
    "BatchRow",
    "BatchSnapshot",
    "BatchStatus",
    "BatchValidated",
    "BatchWindowEnded",
    "BillingCommand",
    "BillingCommandKind",
    "BillingCustomer",
    "BillingDecision",
    "BillingReport",
    "BillingReportError",
    "BudgetHold",
    "ChunkRow",
    "ClaimCheck",
    "CollectedLine",
    "ControllerLoad",
    "DayUsage",
    "DeliveryState",
    "DoneLines",
    "DueLines",
    "FileRecord",
    "IntakeTask",
    "LineUsage",
    "MeterChunkRow",
    "MeterSend",
    "MeteredUsage",
    "ModelUsage",
    "ObjectRef",
    "OldSecret",
    "OpenRetry",
    "Outcome",
    "OutcomeKind",
    "PartitionSeen",
    "PinnedPrompt",
    "PoolBacklog",
    "PoolLoad",
    "PromptHead",
    "PromptVersion",
    "PromptVersionRef",
    "ReadyLine",
    "ReadyLines",
    "RealtimeCancel",
    "RealtimeLoad",
    "RealtimePoolLoad",
    "RealtimeReplies",
    "RealtimeReply",
    "RealtimeRequest",
    "Record",
    "ReplyKind",
    "SegmentWritten",
    "SendState",
    "TenantRecord",
    "Usage",
    "UsageRecorded",
    "WebhookCommand",
    "WebhookCommandKind",
    "WebhookDelivery",
    "WebhookEndpoint",
    "WebhookState",
    "WorkerLoad",
]

Record = (
    BatchCreate
    | BatchEnded
    | WebhookCommand
    | WebhookDelivery
    | WebhookEndpoint
    | WebhookState
    | BatchCancel
    | BatchPause
    | BatchResume
    | BatchChange
    | BatchValidated
    | BatchRejected
    | SegmentWritten
    | BatchAssembled
    | BatchWindowEnded
    | IntakeTask
    | AssembleTask
    | ReadyLines
    | DoneLines
    | UsageRecorded
    | BatchSnapshot
    | BatchForecasts
    | FileRecord
    | ApiKeyRecord
    | TenantRecord
    | PromptHead
    | PromptVersion
    | WorkerLoad
    | ControllerLoad
    | RealtimeRequest
    | RealtimeReplies
    | RealtimeCancel
    | RealtimeLoad
    | BatchRow
    | ChunkRow
    | BillingCommand
    | BillingCustomer
    | BillingDecision
    | BillingReport
    | MeterChunkRow
    | MeterSend
)
"""Every record that stands alone on a topic or in a table."""

RECORDS: tuple[type[Record], ...] = (
    BatchEnded,
    WebhookCommand,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookState,
    BatchCreate,
    BatchCancel,
    BatchPause,
    BatchResume,
    BatchChange,
    BatchValidated,
    BatchRejected,
    SegmentWritten,
    BatchAssembled,
    BatchWindowEnded,
    IntakeTask,
    AssembleTask,
    ReadyLines,
    DoneLines,
    UsageRecorded,
    BatchSnapshot,
    BatchForecasts,
    FileRecord,
    ApiKeyRecord,
    TenantRecord,
    PromptHead,
    PromptVersion,
    WorkerLoad,
    ControllerLoad,
    RealtimeRequest,
    RealtimeReplies,
    RealtimeCancel,
    RealtimeLoad,
    BatchRow,
    ChunkRow,
    BillingCommand,
    BillingCustomer,
    BillingDecision,
    BillingReport,
    MeterChunkRow,
    MeterSend,
)
