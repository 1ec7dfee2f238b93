"""What each request makes of a stored prompt: plain functions from one head to the next.

A new head's revision and write id are given to it when it is written.
"""

from __future__ import annotations

import msgspec

from api.prompts.request import PromptRequest, VersionRequest
from schemas.records import PromptHead, PromptVersion, PromptVersionRef


def text_of(tenant: str, slug: str, version_id: str, asked: VersionRequest) -> PromptVersion:
    """The record of a new version's text."""
    return PromptVersion(
        tenant=tenant,
        slug=slug,
        version_id=version_id,
        messages=asked.messages,
        model_config=asked.model_config,
    )


def created(
    before: PromptHead | None,
    tenant: str,
    asked: PromptRequest,
    *,
    prompt_id: str,
    version_id: str,
    now_ms: int,
) -> PromptHead:
    """A new prompt. Numbers go on behind those of a deleted one with this slug."""
    number = 1 if before is None else before.latest + 1
    return PromptHead(
        tenant=tenant,
        slug=asked.slug,
        revision=0,
        write_id="",
        prompt_id=prompt_id,
        request_hash=asked.version.hash,
        description=asked.description,
        created_at_ms=now_ms,
        updated_at_ms=now_ms,
        published=number,
        latest=number,
        versions=(_ref(number, version_id, asked.version, now_ms),),
    )


def with_version(
    before: PromptHead, asked: VersionRequest, *, version_id: str, now_ms: int
) -> PromptHead:
    """The prompt with one version more, not published."""
    number = before.latest + 1
    return msgspec.structs.replace(
        before,
        latest=number,
        versions=(*before.versions, _ref(number, version_id, asked, now_ms)),
        updated_at_ms=_later(before, now_ms),
    )


def published(before: PromptHead, number: int | None, now_ms: int) -> PromptHead:
    """The prompt with this version published; None for none. The same object if it is so."""
    if before.published == number:
        return before
    updated_ms = _later(before, now_ms)
    return msgspec.structs.replace(before, published=number, updated_at_ms=updated_ms)


def described(before: PromptHead, description: str | None, now_ms: int) -> PromptHead:
    """The prompt with this description. The same object if it has it."""
    if before.description == description:
        return before
    updated_ms = _later(before, now_ms)
    return msgspec.structs.replace(before, description=description, updated_at_ms=updated_ms)


def deleted(before: PromptHead, now_ms: int) -> PromptHead:
    """What is left of a prompt: its revision and its last number, so that neither comes again."""
    ended_ms = _later(before, now_ms)
    return msgspec.structs.replace(
        before,
        description=None,
        published=None,
        versions=(),
        updated_at_ms=ended_ms,
        deleted_at_ms=ended_ms,
    )


def _ref(number: int, version_id: str, asked: VersionRequest, now_ms: int) -> PromptVersionRef:
    return PromptVersionRef(
        number=number,
        version_id=version_id,
        created_at_ms=now_ms,
        size_bytes=asked.size_bytes,
        request_hash=asked.hash,
    )


def _later(before: PromptHead, now_ms: int) -> int:
    # Clocks of gateways differ a little.
    return max(now_ms, before.updated_at_ms)
