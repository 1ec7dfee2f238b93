"""Object keys: the one place that knows where things lie in the object store.

    files/<tenant>/<file id>                       an uploaded file
    batches/<batch id>/plan/<unique>               the plan (domain.plan)
    batches/<batch id>/claims/<unique>             a rendered outcome above the claim-check limit
    batches/<batch id>/segments/<unique>           packed outcomes (domain.segment)
    batches/<batch id>/assembled/<unique>          an output or error file, and its manifest

Every attempt writes under a new unique name; nothing is ever overwritten. What lies under
`batches/<batch id>/` and is no live file's object goes when the clean-up finds the batch ended.
"""

from __future__ import annotations


def uploaded_file(tenant: str, file_id: str) -> str:
    """An uploaded file's bytes."""
    return f"files/{tenant}/{file_id}"


def batch_prefix(batch_id: str) -> str:
    """Everything that belongs to a batch, with a trailing slash."""
    return f"batches/{batch_id}/"


def plan(batch_id: str, unique: str) -> str:
    """A plan."""
    return f"{batch_prefix(batch_id)}plan/{unique}"


def claim(batch_id: str, unique: str) -> str:
    """An outcome too large for Kafka."""
    return f"{batch_prefix(batch_id)}claims/{unique}"


def segments_prefix(batch_id: str) -> str:
    """All segments of a batch, with a trailing slash."""
    return f"{batch_prefix(batch_id)}segments/"


def segment(batch_id: str, unique: str) -> str:
    """A segment."""
    return f"{segments_prefix(batch_id)}{unique}"


def assembled(batch_id: str, unique: str) -> str:
    """An output or error file as one attempt at assembly wrote it."""
    return f"{batch_prefix(batch_id)}assembled/{unique}"


def manifest_of(assembled_key: str) -> str:
    """The manifest beside an assembled file."""
    return f"{assembled_key}.manifest"
