"""The file records of a batch's output and error files."""

from __future__ import annotations

from schemas.records import AssembledFile, BatchAssembled, FileRecord
from streams.domain.batch.state import Request

#: Output files expire after 30 days unless the caller asked otherwise, as at OpenAI.
DEFAULT_EXPIRES_AFTER_S = 30 * 86_400
OUTPUT_PURPOSE = "batch_output"


def output_files(
    request: Request, event: BatchAssembled
) -> tuple[FileRecord | None, FileRecord | None]:
    """The output and the error file, each only where it has lines."""
    return (
        _record(request, event, event.output, "output"),
        _record(request, event, event.error, "error"),
    )


def _record(
    request: Request, event: BatchAssembled, file: AssembledFile | None, kind: str
) -> FileRecord | None:
    if file is None or file.lines == 0:
        return None
    expires_after_s = request.output_expires_after_s or DEFAULT_EXPIRES_AFTER_S
    return FileRecord(
        file_id=file.file_id,
        tenant=request.tenant,
        object=file.object,
        filename=f"{request.batch_id}_{kind}.jsonl",
        purpose=OUTPUT_PURPOSE,
        created_at_ms=event.at_ms,
        expires_at_ms=event.at_ms + expires_after_s * 1000,
        batch_id=request.batch_id,
    )
