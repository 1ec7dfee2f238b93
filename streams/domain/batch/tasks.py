"""The two tasks of a batch's life: checking its input, and assembling its files."""

from __future__ import annotations

from collections.abc import Mapping

from schemas.errors import ValidationCode
from schemas.records import AssembleTask, BatchCreate, BatchError, IntakeTask, ObjectRef
from streams.domain.batch.control import MAX_PRIORITY, MIN_PRIORITY, allowed
from streams.domain.batch.state import Cancelling, Finalizing, Request, Terms
from streams.domain.ids import task_id
from streams.domain.ledger import Ledger, packed_bitmap

#: What an input file must have been uploaded for.
INPUT_PURPOSE = "batch"


def usable_input(create: BatchCreate) -> ObjectRef | BatchError:
    """The input file, or why the batch can't be run."""
    name = create.input_file_id
    if not allowed(create.priority):
        # Gateways judge it before; this one came from a direct producer.
        return BatchError(
            code=ValidationCode.INVALID_REQUEST,
            message=f"The priority {create.priority} is not between {MIN_PRIORITY} and "
            f"{MAX_PRIORITY}.",
            param="priority",
        )
    if create.input is not None and create.input_purpose == INPUT_PURPOSE:
        return create.input
    if create.input is None:
        message = (
            f"Cannot find file {name}, or organization {create.tenant} does not have access to it."
        )
    else:
        message = (
            f"The file {name} was uploaded with purpose '{create.input_purpose}'; "
            f"a batch needs a file with purpose '{INPUT_PURPOSE}'."
        )
    return BatchError(code=ValidationCode.INVALID_REQUEST, message=message, param="file_id")


def intake_id(request: Request) -> str:
    """The id of the batch's intake task."""
    return task_id(request.batch_id, "intake")


def assemble_id(request: Request) -> str:
    """The id of the batch's assembly task."""
    return task_id(request.batch_id, "assemble")


def intake_task(request: Request, terms: Terms, file: ObjectRef) -> IntakeTask:
    """Check this input file."""
    return IntakeTask(
        task_id=intake_id(request),
        batch_id=request.batch_id,
        tenant=request.tenant,
        at_ms=request.created_at_ms,
        endpoint=request.endpoint,
        input=file,
        deadline_ms=terms.expires_at_ms,
    )


def assemble_task(batch: Finalizing | Cancelling, chunks: Mapping[int, Ledger]) -> AssembleTask:
    """Assemble the files of these frozen lines; of none, where there is no plan."""
    request, work = batch.request, batch.work
    total = work.total if work else 0
    frozen_at_ms = (
        batch.finalizing_at_ms if isinstance(batch, Finalizing) else batch.cancelling_at_ms
    )
    return AssembleTask(
        task_id=assemble_id(request),
        batch_id=request.batch_id,
        tenant=request.tenant,
        at_ms=frozen_at_ms,
        reason=batch.reason,
        input=request.input if work else None,
        plan=work.plan if work else None,
        total=total,
        accepted=packed_bitmap(chunks, total),
        completed=batch.frozen.completed,
        failed=batch.frozen.failed,
    )
