"""What a sealed batch becomes: the input file, and the command that creates the batch.

Everything in them follows from the records of the tenant's topic, so that whoever carries a seal
out again after a crash writes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from api import checks
from api.batches.request import CreateRequest, parse
from api.errors import InvalidRequest
from api.http.body import decoded_object
from schemas.errors import SUBMISSION_MESSAGES, SubmissionCode
from schemas.records import BatchCreate, FileRecord
from streams.domain.bridge.inbox import Create

#: Says how many lines the producer has sent, so that lost ones are found.
_LINES = "lines"
#: What a create over HTTP may say and a seal may not: the records themselves say it.
_NOT_HERE = ("input_file_id", "idempotency_key")


@dataclass(frozen=True, slots=True)
class Sealed:
    """A seal found good."""

    create: Create
    tenant: str
    asked: CreateRequest


def judged(create: Create, tenant: str, windows: Mapping[str, int]) -> Sealed:
    """The seal, if it can be carried out. Raises InvalidRequest."""
    body = decoded_object(create.request)
    for name in _NOT_HERE:
        if name in body:
            raise InvalidRequest(f"A seal has no '{name}'.", param=name, code="unknown_parameter")
    lines = _lines(body)
    if lines not in (None, create.batch.lines):
        code = SubmissionCode.LINES_MISSING
        told = f"{SUBMISSION_MESSAGES[code]} It says {lines}, and {create.batch.lines} came."
        raise InvalidRequest(told, param=_LINES, code=code.value)
    body["input_file_id"] = create.batch.file_id
    return Sealed(create, tenant, parse(body, None, windows))


def _lines(body: dict[str, Any]) -> int | None:
    value = body.pop(_LINES, None)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise checks.wrong_type(_LINES, int, value)
    return value


def command(sealed: Sealed, file: FileRecord) -> BatchCreate:
    """The command that creates the batch, the same at every attempt."""
    batch, asked = sealed.create.batch, sealed.asked
    return BatchCreate(
        command_id=f"cmd_{batch.batch_id}",
        batch_id=batch.batch_id,
        tenant=sealed.tenant,
        at_ms=sealed.create.at_ms,
        endpoint=asked.endpoint,
        input_file_id=file.file_id,
        input=file.object,
        input_purpose=file.purpose,
        completion_window=asked.completion_window,
        window_s=asked.window_s,
        metadata=asked.metadata,
        output_expires_after_s=asked.output_expires_after_s,
        request_hash=asked.hash(),
        priority=asked.priority,
        kafka_key=batch.key,
    )
