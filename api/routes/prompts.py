"""/v1/prompts: create, list, get, describe, publish, delete."""

from __future__ import annotations

from aiohttp import hdrs, web

from api import views
from api.auth import TENANT
from api.gateway import GATEWAY, Gateway
from api.prompts import views as prompt_views
from api.prompts import writes as prompt_writes
from api.prompts.facts import Facts
from api.prompts.request import IfMatch, etag, read_patch, read_prompt, read_published
from api.routes.paging import paging, unknown_after
from schemas.records import PromptHead
from streams.domain.prompts.registry import listed
from streams.domain.prompts.request import is_slug

_DEFAULT_LIMIT = 20
_MAX_LIMIT = 100

routes = web.RouteTableDef()


@routes.post("/v1/prompts")
async def create(request: web.Request) -> web.Response:
    """Creates a prompt whose first version is published."""
    gateway, tenant = request.app[GATEWAY], request[TENANT]
    asked = await read_prompt(request)
    return await _answer(gateway, await prompt_writes.create(gateway, tenant, asked))


@routes.get("/v1/prompts")
async def list_prompts(request: web.Request) -> web.Response:
    """A page of the tenant's prompts, newest first."""
    gateway, tenant = request.app[GATEWAY], request[TENANT]
    page = paging(request, default=_DEFAULT_LIMIT, maximum=_MAX_LIMIT, known=("limit", "after"))
    after = None
    if page.after is not None:
        wanted = page.after
        after = await gateway.surely(lambda: gateway.prompts.place(tenant, wanted))
        if after is None:
            raise unknown_after(wanted)
    found = await gateway.prompts.prompts(tenant, after, page.limit + 1)
    data = [
        prompt_views.prompt(head, await _facts(gateway, head), versions=False)
        for head in found[: page.limit]
    ]
    return views.answer(views.page(data, has_more=len(found) > page.limit))


@routes.get("/v1/prompts/{slug}")
async def get(request: web.Request) -> web.Response:
    """One prompt."""
    return await _answer(request.app[GATEWAY], await found_prompt(request))


@routes.patch("/v1/prompts/{slug}")
async def patch(request: web.Request) -> web.Response:
    """Changes the description, the one thing about a prompt that isn't a version."""
    gateway, tenant, slug = request.app[GATEWAY], request[TENANT], slug_of(request)
    if_match, description = IfMatch(request), await read_patch(request)
    head = await prompt_writes.describe(gateway, tenant, slug, description, if_match)
    return await _answer(gateway, head)


@routes.post("/v1/prompts/{slug}/publish")
async def publish(request: web.Request) -> web.Response:
    """Chooses the version that lines without a version get from now on."""
    gateway, tenant, slug = request.app[GATEWAY], request[TENANT], slug_of(request)
    if_match, number = IfMatch(request), await read_published(request)
    head = await prompt_writes.publish(gateway, tenant, slug, number, if_match)
    return await _answer(gateway, head)


@routes.delete("/v1/prompts/{slug}")
async def delete(request: web.Request) -> web.Response:
    """Deletes a prompt. Batches that were validated keep the versions that they pinned."""
    gateway, tenant, slug = request.app[GATEWAY], request[TENANT], slug_of(request)
    head = await prompt_writes.delete(gateway, tenant, slug, IfMatch(request))
    return views.answer(
        {"id": head.prompt_id, "slug": head.slug, "object": "prompt", "deleted": True}
    )


async def found_prompt(request: web.Request) -> PromptHead:
    """The prompt that the path names. Raises NotFound."""
    gateway, tenant, slug = request.app[GATEWAY], request[TENANT], slug_of(request)
    head = await gateway.surely(lambda: gateway.prompts.prompt(tenant, slug))
    if head is None:
        raise prompt_writes.no_prompt(slug)
    return head


def slug_of(request: web.Request) -> str:
    """The slug in the path. Raises NotFound for what can't be one."""
    slug = request.match_info["slug"]
    if not is_slug(slug):
        raise prompt_writes.no_prompt(slug)
    return slug


async def _answer(gateway: Gateway, head: PromptHead) -> web.Response:
    body = prompt_views.prompt(head, await _facts(gateway, head))
    return views.answer(body, {hdrs.ETAG: etag(head)})


async def _facts(gateway: Gateway, head: PromptHead) -> Facts:
    """What the published version reads."""
    ref = None if head.published is None else listed(head, head.published)
    if ref is None:
        return Facts()
    text = await gateway.prompts.text(head.tenant, head.slug, ref.version_id)
    return Facts() if text is None else await gateway.prompt_facts.of(text)
