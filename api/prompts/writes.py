"""Changes stored prompts: compare-and-set on a log.

    read the head  ->  decide  ->  send the new version's text  ->  send the next head
         ^                                                               |
         └── another one was first with this revision ── read it back ───┘── ours counts: done

Of several heads with one revision the first in the log counts, for every reader, so whoever reads
its own head back knows whether it won. A loser decides anew from what it reads then; with If-Match
that is a 412. The lock below is for quotas, and spares races within one gateway.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import msgspec
import structlog

from api import checks
from api.errors import Conflict, InvalidRequest, NotFound, Unavailable
from api.gateway import Gateway
from api.prompts import changes
from api.prompts.request import IfMatch, PromptRequest, VersionRequest
from schemas.records import PromptHead, PromptVersion, PromptVersionRef
from schemas.topics import PROMPT
from streams.domain import ids
from streams.domain.prompts.registry import head_key, listed, version_key

log = structlog.get_logger(__name__)

#: Lost races after which a caller is told to come back; two writers rarely lose more than a few.
_ATTEMPTS = 50
#: A head is sent at most this long after its version's text, which the clean-up would remove if
#: no head listed it for much longer.
_MAX_WRITE_S = 300.0


class Draft(NamedTuple):
    """The next head, and the text of the version that it adds."""

    head: PromptHead
    text: PromptVersion | None = None


#: Gives a Draft of the next head, or a head that is in the log already if that is the answer.
#: Raises ApiError if the present head (None: there never was one) forbids it.
Decide = Callable[[PromptHead | None], Awaitable[Draft | PromptHead]]
#: The next head of a prompt that exists; the same object if nothing is to be written.
Change = Callable[[PromptHead], PromptHead]


async def create(gateway: Gateway, tenant: str, asked: PromptRequest) -> PromptHead:
    """Creates a prompt, or gives the one that the same Idempotency-Key created before."""
    key = asked.version.key
    prompt_id = ids.new_prompt_id() if key is None else ids.idempotent_prompt_id(tenant, key)
    version_id = ids.new_version_id(asked.slug)
    text = changes.text_of(tenant, asked.slug, version_id, asked.version)

    async def decide(before: PromptHead | None) -> Draft | PromptHead:
        made = await gateway.prompts.by_id(tenant, prompt_id)
        if made is not None:
            return _same(made, asked.version.hash)
        if before is not None and before.deleted_at_ms is None:
            raise Conflict(
                f"A prompt with slug '{asked.slug}' exists; add a version to it, or delete it.",
                param="slug",
                code="prompt_exists",
            )
        await _check_room(gateway, tenant, asked.version, prompts=1)
        head = changes.created(
            before,
            tenant,
            asked,
            prompt_id=prompt_id,
            version_id=version_id,
            now_ms=gateway.clock.now_ms(),
        )
        return Draft(head, text)

    return await _write(gateway, tenant, asked.slug, decide)


async def add_version(
    gateway: Gateway, tenant: str, slug: str, asked: VersionRequest, if_match: IfMatch
) -> tuple[PromptHead, PromptVersionRef]:
    """Adds a version, or gives the one that the same Idempotency-Key added before."""
    version_id = ids.new_version_id(slug, asked.key)
    text = changes.text_of(tenant, slug, version_id, asked)

    async def decide(before: PromptHead | None) -> Draft | PromptHead:
        head = _live(before, slug)
        if asked.key is not None and (ref := _added_before(head, asked.key)) is not None:
            if ref.request_hash != asked.hash:
                raise _conflict()
            return head
        if_match.check(head)
        limit = gateway.settings.max_prompt_versions
        if len(head.versions) >= limit:
            raise _no_room(f"a prompt may have at most {limit} versions")
        await _check_room(gateway, tenant, asked)
        now_ms = gateway.clock.now_ms()
        return Draft(changes.with_version(head, asked, version_id=version_id, now_ms=now_ms), text)

    head = await _write(gateway, tenant, slug, decide)
    again = None if asked.key is None else _added_before(head, asked.key)
    return head, again or head.versions[-1]


async def publish(
    gateway: Gateway, tenant: str, slug: str, number: int | None, if_match: IfMatch
) -> PromptHead:
    """Publishes a version; None withdraws the prompt from use without a version."""

    def change(head: PromptHead) -> PromptHead:
        if number is not None and listed(head, number) is None:
            raise no_version(slug, number)
        return changes.published(head, number, gateway.clock.now_ms())

    return await _change(gateway, tenant, slug, change, if_match)


async def describe(
    gateway: Gateway,
    tenant: str,
    slug: str,
    description: Callable[[str | None], str | None],
    if_match: IfMatch,
) -> PromptHead:
    """Changes the description, given the present one."""

    def change(head: PromptHead) -> PromptHead:
        text = description(head.description)
        return changes.described(head, text, gateway.clock.now_ms())

    return await _change(gateway, tenant, slug, change, if_match)


async def delete(gateway: Gateway, tenant: str, slug: str, if_match: IfMatch) -> PromptHead:
    """Deletes a prompt with its versions."""

    def change(head: PromptHead) -> PromptHead:
        return changes.deleted(head, gateway.clock.now_ms())

    return await _change(gateway, tenant, slug, change, if_match)


def no_prompt(slug: str) -> NotFound:
    """The error for a slug that the tenant has no prompt of."""
    message = f"No prompt found with slug '{checks.shortened(slug)}'."
    return NotFound(message, param="slug", code="prompt_not_found")


def no_version(slug: str, number: int | str) -> NotFound:
    """The error for a version that the prompt doesn't have."""
    shown = checks.shortened(str(number))
    message = f"The prompt '{slug}' has no version {shown}."
    return NotFound(message, param="version", code="prompt_version_not_found")


async def _change(
    gateway: Gateway, tenant: str, slug: str, change: Change, if_match: IfMatch
) -> PromptHead:
    async def decide(before: PromptHead | None) -> Draft | PromptHead:
        head = _live(before, slug)
        if_match.check(head)
        after = change(head)
        return head if after is head else Draft(after)

    return await _write(gateway, tenant, slug, decide)


async def _write(gateway: Gateway, tenant: str, slug: str, decide: Decide) -> PromptHead:
    """The head that `decide` wanted, once it is in the log and counts."""
    async with _alone(gateway, tenant):
        # What is refused is refused by the newest state that there is.
        await gateway.sync()
        begun_s = gateway.clock.monotonic_s()
        text_sent = False
        for _ in range(_ATTEMPTS):
            before = await gateway.prompts.head(tenant, slug)
            decided = await decide(before)
            if isinstance(decided, PromptHead):
                return decided
            if decided.text is not None and not text_sent:
                key = version_key(tenant, slug, decided.text.version_id)
                await gateway.send(PROMPT, key, decided.text)
                text_sent = True
            if gateway.clock.monotonic_s() - begun_s > _MAX_WRITE_S:
                break
            head = msgspec.structs.replace(
                decided.head,
                revision=1 if before is None else before.revision + 1,
                write_id=ids.new_write_id(),
            )
            if await _counts(gateway, head):
                log.info(
                    "A prompt was changed.",
                    action="prompt_changed",
                    prompt_id=head.prompt_id,
                    revision=head.revision,
                )
                return head
    raise Unavailable("The server is not able to answer just now.", code="unavailable")


async def _counts(gateway: Gateway, head: PromptHead) -> bool:
    """Sends a head; whether it was the first with its revision."""
    key = head_key(head.tenant, head.slug, head.revision, head.write_id)
    if not await gateway.publish(PROMPT, key, head):
        # Only the log knows. With an Idempotency-Key, asking again is safe.
        raise Unavailable("The server is not able to answer just now.", code="unavailable")
    return await gateway.prompts.fate(key) == "won"


@asynccontextmanager
async def _alone(gateway: Gateway, tenant: str) -> AsyncIterator[None]:
    lock = gateway.prompt_locks.setdefault(tenant, asyncio.Lock())
    async with asyncio.timeout(gateway.timeouts.sync_s):
        await lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _live(head: PromptHead | None, slug: str) -> PromptHead:
    if head is None or head.deleted_at_ms is not None:
        raise no_prompt(slug)
    return head


def _same(made: PromptHead, request_hash: str) -> PromptHead:
    if made.deleted_at_ms is not None:
        raise Conflict(
            "Idempotency conflict: this key created a prompt that was deleted since; use another.",
            param="Idempotency-Key",
            code="idempotency_conflict",
        )
    if made.request_hash != request_hash:
        raise _conflict()
    return made


def _added_before(head: PromptHead, key: str) -> PromptVersionRef | None:
    part = ids.version_key_part(head.slug, key)
    return next((ref for ref in head.versions if ref.version_id.startswith(part)), None)


def _conflict() -> Conflict:
    return Conflict(
        "Idempotency conflict: this key was used before, for a request that differs.",
        param="Idempotency-Key",
        code="idempotency_conflict",
    )


async def _check_room(
    gateway: Gateway, tenant: str, asked: VersionRequest, *, prompts: int = 0
) -> None:
    """Two gateways that race may go over a quota by what they are adding, and no further."""
    settings, used = gateway.settings, await gateway.prompts.usage(tenant)
    if used.prompts + prompts > settings.max_prompts:
        raise _no_room(f"at most {settings.max_prompts} prompts may be kept")
    if used.size_bytes + asked.size_bytes > settings.max_prompt_bytes:
        limit = settings.max_prompt_bytes
        raise _no_room(f"the versions of all prompts may have at most {limit} bytes together")


def _no_room(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"There is no room for this: {why}. Delete prompts that are not needed any more.",
        code="prompt_quota_exceeded",
    )
