"""The states of a batch: each carries only what is true in it. Their life is in domain.batch."""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.records import (
    AssembleReason,
    BatchCreate,
    BatchError,
    BatchStatus,
    ObjectRef,
    PinnedPrompt,
)
from streams.domain.ledger import Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the caller asked for; never changes."""

    batch_id: str
    tenant: str
    created_at_ms: int
    endpoint: str
    input_file_id: str
    input: ObjectRef | None
    completion_window: str
    metadata: dict[str, str]
    output_expires_after_s: int | None
    request_hash: str
    origin_batch_id: str | None = None
    kafka_key: str | None = None
    key_id: str | None = None
    estimated_cost_micros: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What callers may change until the batch has ended.

    priority: of a tenant's batches those with a higher one go first. expires_at_ms: the end of the
    completion window.
    """

    priority: int
    expires_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What intake found in the input file.

    prompts: the versions that the lines use, by the plan's pin numbers. unused_variables: how
    many lines give a variable that their prompt doesn't read.
    """

    plan: ObjectRef
    total: int
    models: tuple[str, ...]
    estimated_input_tokens: int
    prompts: tuple[PinnedPrompt, ...]
    unused_variables: int
    in_progress_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """What every state has.

    watermark: offset of the last event that changed the batch; events up to it are replays.
    commands: ids of the commands folded, newest last.
    """

    request: Request
    terms: Terms
    watermark: int
    commands: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Validating(_State):
    """The file-worker checks the input file. paused_at_ms: its lines will not start."""

    paused_at_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InProgress(_State):
    """Lines run. counts: the sums over the batch's chunks.

    accepted_prefix: lines that are in before the first one that is not. paused_at_ms: since when
    no new line is released, if the batch is paused.
    """

    work: Work
    counts: Counts
    accepted_prefix: int = 0
    paused_at_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalizing(_State):
    """The set of lines is frozen and the files are being assembled."""

    work: Work
    frozen: Counts
    accepted_prefix: int = 0
    reason: AssembleReason
    finalizing_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelling(_State):
    """As Finalizing, because the caller cancelled; without work if that was before validation."""

    work: Work | None
    frozen: Counts
    accepted_prefix: int = 0
    reason: AssembleReason
    finalizing_at_ms: int | None
    cancelling_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended(_State):
    """Nothing changes any more. status: failed, completed, expired or cancelled."""

    status: BatchStatus
    work: Work | None = None
    final: Counts = field(default_factory=Counts)
    finalizing_at_ms: int | None = None
    cancelling_at_ms: int | None = None
    ended_at_ms: int
    errors: tuple[BatchError, ...] = ()
    output_file_id: str | None = None
    error_file_id: str | None = None
    output: ObjectRef | None = None
    error: ObjectRef | None = None


Live = Validating | InProgress | Finalizing | Cancelling
"""The states in which something may still happen."""

Batch = Live | Ended
"""A batch that the log knows."""


def request_of(create: BatchCreate) -> Request:
    """The request in a create command."""
    created_at_ms = _created_at_ms(create)
    return Request(
        batch_id=create.batch_id,
        tenant=create.tenant,
        created_at_ms=created_at_ms,
        endpoint=create.endpoint,
        input_file_id=create.input_file_id,
        input=create.input,
        completion_window=create.completion_window,
        metadata=create.metadata,
        output_expires_after_s=create.output_expires_after_s,
        request_hash=create.request_hash,
        origin_batch_id=create.origin_batch_id,
        kafka_key=create.kafka_key,
        key_id=create.key_id,
        estimated_cost_micros=create.estimated_cost_micros,
    )


def terms_of(create: BatchCreate) -> Terms:
    """The terms that a create command begins with."""
    return Terms(
        priority=create.priority, expires_at_ms=_created_at_ms(create) + create.window_s * 1000
    )


def _created_at_ms(create: BatchCreate) -> int:
    # The API shows whole seconds, so the window starts on one.
    return create.at_ms // 1000 * 1000


def event_time(at_ms: int, request: Request) -> int:
    """When an event happened. Clocks differ a little, but nothing precedes the batch itself."""
    return max(at_ms, request.created_at_ms)
