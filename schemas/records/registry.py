"""What outlives batches: files, API keys, stored prompts."""

from __future__ import annotations

import msgspec

from schemas.records.common import ObjectRef


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A file as the API shows it, or its end; a tombstone follows when its bytes are gone."""

    file_id: str
    tenant: str
    object: ObjectRef
    filename: str
    purpose: str
    created_at_ms: int
    expires_at_ms: int | None = None
    batch_id: str | None = None
    deleted_at_ms: int | None = None


class ApiKeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An API key. The secret itself is shown once and never stored."""

    key_id: str
    tenant: str
    name: str
    secret_sha256: str
    hint: str
    created_at_ms: int
    revoked_at_ms: int | None = None
    budget_micros: int | None = None
    budget_period: str = "total"


class TenantRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator has set for a tenant; the last record counts."""

    tenant: str
    at_ms: int
    max_enqueued_lines: int | None = None
    max_enqueued_tokens: int | None = None
    budget_micros: int | None = None
    budget_period: str = "total"


class PromptVersionRef(msgspec.Struct, frozen=True, kw_only=True):
    """A version in a prompt's list: its number, counted from 1, and the record of its text."""

    number: int
    version_id: str
    created_at_ms: int
    size_bytes: int
    request_hash: str


class PromptHead(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt as it is from one revision on. Of several with one revision the first counts."""

    tenant: str
    slug: str
    revision: int
    write_id: str
    prompt_id: str
    request_hash: str
    description: str | None = None
    created_at_ms: int
    updated_at_ms: int
    published: int | None = None
    latest: int
    versions: tuple[PromptVersionRef, ...]
    deleted_at_ms: int | None = None


class PromptVersion(msgspec.Struct, frozen=True, kw_only=True):
    """The text of one version of a prompt; never changes. In use once a PromptHead lists it."""

    tenant: str
    slug: str
    version_id: str
    messages: bytes
    model_config: bytes
