"""/v1/prompts/{slug}/versions: list, get and add versions of a prompt, and preview them."""

from __future__ import annotations

import re
from typing import NamedTuple

from aiohttp import hdrs, web

from api import checks, views
from api.auth import TENANT
from api.errors import InvalidRequest
from api.gateway import GATEWAY, Gateway
from api.prompts import views as prompt_views
from api.prompts import writes as prompt_writes
from api.prompts.preview import preview
from api.prompts.request import IfMatch, etag, read_render, read_version
from api.routes.paging import paging
from api.routes.prompts import found_prompt, slug_of
from schemas.records import PromptHead, PromptVersion, PromptVersionRef
from streams.domain.prompts.registry import listed
from streams.domain.prompts.request import MAX_VERSION

_DEFAULT_LIMIT = 20
_MAX_LIMIT = 100
_NUMBER = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)

routes = web.RouteTableDef()


class FoundVersion(NamedTuple):
    """A version, and its prompt as it was when the version was looked for."""

    head: PromptHead
    ref: PromptVersionRef
    text: PromptVersion


@routes.post("/v1/prompts/{slug}/versions")
async def add(request: web.Request) -> web.Response:
    """Adds a version, which is not published yet."""
    gateway, tenant, slug = request.app[GATEWAY], request[TENANT], slug_of(request)
    if_match, asked = IfMatch(request), await read_version(request)
    head, ref = await prompt_writes.add_version(gateway, tenant, slug, asked, if_match)
    text = await gateway.prompts.text(tenant, slug, ref.version_id)
    if text is None:
        # Deleted in the meantime, and cleaned up.
        raise prompt_writes.no_version(slug, ref.number)
    return views.answer(prompt_views.version(head, ref, text, asked.facts), {hdrs.ETAG: etag(head)})


@routes.get("/v1/prompts/{slug}/versions")
async def list_versions(request: web.Request) -> web.Response:
    """A page of a prompt's versions, newest first; `after` is a version's number."""
    gateway = request.app[GATEWAY]
    page = paging(request, default=_DEFAULT_LIMIT, maximum=_MAX_LIMIT, known=("limit", "after"))
    below = MAX_VERSION + 1
    if page.after is not None:
        below = checks.within("after", checks.integer_text("after", page.after), 1, below)
    head = await found_prompt(request)
    refs = [ref for ref in reversed(head.versions) if ref.number < below]
    data = []
    for ref in refs[: page.limit]:
        text = await gateway.prompts.text(head.tenant, head.slug, ref.version_id)
        if text is not None:
            facts = await gateway.prompt_facts.of(text)
            data.append(prompt_views.version(head, ref, text, facts))
    return views.answer(
        prompt_views.version_page(data, has_more=len(refs) > page.limit), {hdrs.ETAG: etag(head)}
    )


@routes.get("/v1/prompts/{slug}/versions/{number}")
async def get(request: web.Request) -> web.Response:
    """One version."""
    gateway, slug, number = request.app[GATEWAY], slug_of(request), request.match_info["number"]
    if not _NUMBER.fullmatch(number) or int(number) > MAX_VERSION:
        raise prompt_writes.no_version(slug, number)
    found = await found_version(gateway, request[TENANT], slug, int(number))
    facts = await gateway.prompt_facts.of(found.text)
    return views.answer(
        prompt_views.version(found.head, found.ref, found.text, facts),
        {hdrs.ETAG: etag(found.head)},
    )


@routes.post("/v1/prompts/{slug}/render")
async def render(request: web.Request) -> web.Response:
    """What a line with these variables would send. Nothing is sent."""
    gateway, slug = request.app[GATEWAY], slug_of(request)
    asked = await read_render(request)
    found = await found_version(gateway, request[TENANT], slug, asked.version)
    body = await preview(gateway, found.text, asked, found.ref.number)
    return views.answer(body, {hdrs.ETAG: etag(found.head)})


async def found_version(
    gateway: Gateway, tenant: str, slug: str, number: int | None
) -> FoundVersion:
    """A version by its number; None: the published one. Raises NotFound, InvalidRequest."""

    async def ask() -> FoundVersion | None:
        head = await gateway.prompts.prompt(tenant, slug)
        wanted = head.published if head is not None and number is None else number
        ref = None if head is None or wanted is None else listed(head, wanted)
        if head is None or ref is None:
            return None
        text = await gateway.prompts.text(tenant, slug, ref.version_id)
        return None if text is None else FoundVersion(head, ref, text)

    found = await gateway.surely(ask)
    if found is not None:
        return found
    if await gateway.prompts.prompt(tenant, slug) is None:
        raise prompt_writes.no_prompt(slug)
    if number is not None:
        raise prompt_writes.no_version(slug, number)
    raise InvalidRequest(
        f"No version of the prompt '{slug}' is published; publish one, or give 'version'.",
        param="version",
        code="prompt_not_published",
    )
