"""Ids of everything callers and records name. New ids sort by time (UUIDv7)."""

from __future__ import annotations

import hashlib
from uuid import UUID

import uuid_utils

#: What ids of batches' files begin with. An uploaded file's id has no second dash.
_OUTPUT = "file-output-"
_ERROR = "file-error-"


def _fresh() -> str:
    return uuid_utils.uuid7().hex


def new_file_id() -> str:
    """An id for an uploaded file."""
    return f"file-{_fresh()}"


def output_file_id(batch_id: str) -> str:
    """The id of a batch's output file, known before the file is there."""
    return f"{_OUTPUT}{batch_id}"


def error_file_id(batch_id: str) -> str:
    """The id of a batch's error file, known before the file is there."""
    return f"{_ERROR}{batch_id}"


def batch_of_file(file_id: str) -> tuple[str, bool] | None:
    """The batch whose output file (True) or error file (False) has this id; None for others."""
    if file_id.startswith(_OUTPUT):
        return file_id.removeprefix(_OUTPUT), True
    if file_id.startswith(_ERROR):
        return file_id.removeprefix(_ERROR), False
    return None


def new_object_id() -> str:
    """The last part of the key of an object that an assembly attempt writes."""
    return _fresh()


def idempotent_file_id(tenant: str, key: str, request_hash: str) -> str:
    """The id of the file made for this request with this Idempotency-Key, at every attempt."""
    said = f"file:{len(tenant)}:{tenant}:{request_hash}:{key}"
    return f"file-{UUID(bytes=hashlib.sha256(said.encode()).digest()[:16]).hex}"


def new_batch_id() -> str:
    """An id for a batch created without an Idempotency-Key."""
    return f"batch_{_fresh()}"


def idempotent_batch_id(tenant: str, key: str) -> str:
    """The id that every create with this tenant and Idempotency-Key gets."""
    digest = hashlib.sha256(f"{len(tenant)}:{tenant}:{key}".encode()).digest()
    return f"batch_{UUID(bytes=digest[:16]).hex}"


def submitted_ids(topic: str, partition: int, offset: int, logged_at_ms: int) -> tuple[str, str]:
    """The ids of the batch, and of its input file, whose first record stands there.

    The same whenever the topic is read again; others in a topic that was made anew.
    """
    place = f"kafka:{partition}:{offset}:{logged_at_ms}:{topic}"
    unique = UUID(bytes=hashlib.sha256(place.encode()).digest()[:16]).hex
    return f"batch_{unique}", f"file-{unique}"


def new_prompt_id() -> str:
    """An id for a prompt created without an Idempotency-Key."""
    return f"prompt_{_fresh()}"


def idempotent_prompt_id(tenant: str, key: str) -> str:
    """The id that every create of a prompt with this tenant and Idempotency-Key gets."""
    digest = hashlib.sha256(f"prompt:{len(tenant)}:{tenant}:{key}".encode()).digest()
    return f"prompt_{UUID(bytes=digest[:16]).hex}"


def new_version_id(slug: str, key: str | None = None) -> str:
    """An id for the record of a version's text. Unique, so that no text replaces another.

    Those made for one slug with one Idempotency-Key have one beginning: version_key_part().
    """
    return _fresh() if key is None else version_key_part(slug, key) + _fresh()


def version_key_part(slug: str, key: str) -> str:
    """What ids of versions made for this slug with this Idempotency-Key begin with."""
    return hashlib.sha256(f"{len(slug)}:{slug}:{key}".encode()).hexdigest()[:32] + "-"


def new_write_id() -> str:
    """An id for one write of a prompt's head or of a webhook endpoint."""
    return _fresh()


def new_command_id() -> str:
    """An id for a command, by which a fold ignores repeats."""
    return f"cmd_{_fresh()}"


def new_request_id() -> str:
    """An id for one HTTP request or one upstream call."""
    return f"req_{_fresh()}"


def new_process_id() -> str:
    """An id for one start of a process, by which others tell it from the one before."""
    return _fresh()


def new_segment_id() -> str:
    """An id for a segment, and the last part of its object's key."""
    return f"seg_{_fresh()}"


def new_claim_id() -> str:
    """The last part of the key of an outcome's claim check."""
    return f"claim_{_fresh()}"


def line_request_id(batch_id: str, line: int) -> str:
    """The `id` of a line in the output or error file; the same at every attempt."""
    digest = hashlib.sha256(f"{batch_id}:{line}".encode()).hexdigest()
    return f"batch_req_{digest[:24]}"


def task_id(batch_id: str, kind: str) -> str:
    """The id of a batch's intake or assembly task."""
    return f"{batch_id}:{kind}"
