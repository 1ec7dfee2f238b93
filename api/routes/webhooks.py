"""/v1/webhook_endpoints: create, list and get as OpenAI has them; the log and replay are ours.

Changes of an endpoint, and its deletion, are in `webhook_changes`.

Tests, replays and enabling are commands to the webhook-worker, which alone knows how a delivery
stands; they are answered once the log has them.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import uuid_utils
from aiohttp import web

from api import checks, views
from api.auth import TENANT
from api.errors import Conflict, InvalidRequest, NotFound
from api.gateway import GATEWAY, Gateway
from api.http.body import json_object
from api.routes import webhook_views
from api.routes.paging import paging, unknown_after
from schemas.records import WebhookCommand, WebhookCommandKind, WebhookEndpoint
from schemas.topics import WEBHOOK, WEBHOOK_EVENT
from streams.domain.webhooks.address import MAX_URL, WebhookURLError, check_url
from streams.domain.webhooks.events import EVENT_TYPES, SECRET_BYTES, event_id, secret_of

#: Endpoints that a tenant may have.
MAX_ENDPOINTS = 20
_MAX_NAME = 100
_LOG_DEFAULT, _LOG_MAX = 50, 1000
BASE = "/v1/webhook_endpoints"

routes = web.RouteTableDef()


@routes.post(BASE)
async def create(request: web.Request) -> web.Response:
    """Makes an endpoint. The only answer, but for none, that has its secret."""
    gateway, tenant = request.app[GATEWAY], request[TENANT]
    body = await json_object(request)
    checks.known_only(body, ("event_types", "name", "url"))
    endpoint = WebhookEndpoint(
        endpoint_id=f"we_{uuid_utils.uuid7().hex}",
        tenant=tenant,
        name=name_of(body),
        url=url_of(body, gateway),
        event_types=event_types_of(body),
        secret=secret_of(secrets.token_bytes(SECRET_BYTES)),
        created_at_ms=gateway.clock.now_ms(),
    )
    await gateway.sync()
    if len(await gateway.webhooks.endpoints(tenant)) >= MAX_ENDPOINTS:
        raise Conflict(f"There are {MAX_ENDPOINTS} webhook endpoints, and no more may be.")
    await gateway.publish(WEBHOOK, endpoint.endpoint_id, endpoint)
    return views.answer(webhook_views.endpoint(endpoint, None, secret=True))


@routes.get(BASE)
async def list_endpoints(request: web.Request) -> web.Response:
    """The tenant's endpoints, newest first."""
    gateway, tenant = request.app[GATEWAY], request[TENANT]
    page = paging(request, default=MAX_ENDPOINTS, maximum=100, known=("limit", "after"))
    found = await gateway.webhooks.endpoints(tenant)
    if page.after is not None:
        ids = [endpoint.endpoint_id for endpoint in found]
        if page.after not in ids:
            raise unknown_after(page.after)
        found = found[ids.index(page.after) + 1 :]
    data = [await endpoint_shown(gateway, endpoint) for endpoint in found[: page.limit]]
    return views.answer(views.page(data, has_more=len(found) > page.limit))


@routes.get(BASE + "/{endpoint_id}")
async def get(request: web.Request) -> web.Response:
    """One endpoint."""
    return views.answer(await endpoint_shown(request.app[GATEWAY], await endpoint_of(request)))


@routes.get(BASE + "/{endpoint_id}/deliveries")
async def deliveries(request: web.Request) -> web.Response:
    """The endpoint's last deliveries, the last changed first."""
    gateway, endpoint = request.app[GATEWAY], await endpoint_of(request)
    page = paging(request, default=_LOG_DEFAULT, maximum=_LOG_MAX, known=("limit",))
    found = await gateway.webhooks.deliveries(endpoint.tenant, endpoint.endpoint_id, page.limit + 1)
    data = [webhook_views.delivery(one) for one in found[: page.limit]]
    return views.answer(views.page(data, has_more=len(found) > page.limit))


@routes.post(BASE + "/{endpoint_id}/deliveries/{event_id}/replay")
async def replay(request: web.Request) -> web.Response:
    """Delivers an event of the log again, with the same id."""
    gateway, endpoint = request.app[GATEWAY], await _open(request)
    event = request.match_info["event_id"]
    found = await gateway.surely(
        lambda: gateway.webhooks.delivery(endpoint.tenant, endpoint.endpoint_id, event)
    )
    if found is None:
        raise NotFound(f"No delivery of event '{event}' is in this endpoint's log.")
    await tell_worker(gateway, endpoint, WebhookCommandKind.REPLAY, event=event)
    return views.answer({"id": event, "object": "webhook_endpoint.replay", "replayed": True})


@routes.post(BASE + "/{endpoint_id}/test")
async def test(request: web.Request) -> web.Response:
    """Sends a sample event; the log tells how that went."""
    gateway, endpoint = request.app[GATEWAY], await _open(request)
    body = await json_object(request, empty=True)
    checks.known_only(body, ("event_type",))
    event_type = body.get("event_type", EVENT_TYPES[0])
    if not isinstance(event_type, str):
        raise checks.wrong_type("event_type", str, event_type)
    if event_type not in EVENT_TYPES:
        raise checks.unsupported("event_type", event_type, EVENT_TYPES)
    event = event_id(f"test_{uuid_utils.uuid7().hex}", event_type)
    await tell_worker(
        gateway, endpoint, WebhookCommandKind.TEST, event=event, event_type=event_type
    )
    return views.answer(
        {
            "object": "webhook_endpoint.test",
            "webhook_endpoint_id": endpoint.endpoint_id,
            "event_type": event_type,
            "event_id": event,
        }
    )


def lock_of(request: web.Request) -> asyncio.Lock:
    """Whoever changes or deletes the endpoint that the path names holds it."""
    key = f"{request[TENANT]}/{request.match_info['endpoint_id']}"
    return request.app[GATEWAY].webhook_locks.setdefault(key, asyncio.Lock())


async def endpoint_of(request: web.Request) -> WebhookEndpoint:
    """The endpoint that the path names. Raises NotFound."""
    gateway, tenant = request.app[GATEWAY], request[TENANT]
    endpoint_id = request.match_info["endpoint_id"]
    found = await gateway.surely(lambda: gateway.webhooks.endpoint(tenant, endpoint_id))
    if found is None:
        raise NotFound(f"No webhook endpoint found with id '{endpoint_id}'.")
    return found


async def _open(request: web.Request) -> WebhookEndpoint:
    """The same, if it isn't disabled. Raises NotFound, Conflict."""
    endpoint = await endpoint_of(request)
    gateway = request.app[GATEWAY]
    if not endpoint.enabled:
        raise Conflict("This webhook endpoint is switched off: set 'enabled' to true first.")
    if await gateway.webhooks.disabled_ms(endpoint.tenant, endpoint.endpoint_id) is not None:
        raise Conflict("This webhook endpoint is disabled: nothing got through. Enable it first.")
    return endpoint


async def endpoint_shown(gateway: Gateway, endpoint: WebhookEndpoint) -> Any:
    """The endpoint as its owner sees it."""
    disabled = await gateway.webhooks.disabled_ms(endpoint.tenant, endpoint.endpoint_id)
    return webhook_views.endpoint(endpoint, disabled)


async def tell_worker(
    gateway: Gateway,
    endpoint: WebhookEndpoint,
    kind: WebhookCommandKind,
    *,
    event: str = "",
    event_type: str = "",
) -> None:
    """Asks something of the webhook-worker."""
    command = WebhookCommand(
        tenant=endpoint.tenant,
        endpoint_id=endpoint.endpoint_id,
        kind=kind,
        event_id=event,
        event_type=event_type,
        at_ms=gateway.clock.now_ms(),
    )
    await gateway.send(WEBHOOK_EVENT, endpoint.tenant, command)


def name_of(body: dict[str, Any]) -> str:
    """A name for people; OpenAI asks for one, here it may be left out."""
    if body.get("name") is None:
        return ""
    name = checks.string(body, "name", max_length=_MAX_NAME)
    if not name.isprintable():
        raise InvalidRequest(
            "A name has printable characters only.", param="name", code="invalid_value"
        )
    return name


def url_of(body: dict[str, Any], gateway: Gateway) -> str:
    """Where events are posted. Raises InvalidRequest."""
    url = checks.string(body, "url", max_length=MAX_URL)
    try:
        check_url(url, allow_private=gateway.settings.webhook_allow_private)
    except WebhookURLError as error:
        raise InvalidRequest(str(error), param="url", code="invalid_value") from error
    return url


def event_types_of(body: dict[str, Any]) -> tuple[str, ...]:
    """The types asked for, each once; all there are if none are named."""
    asked = body.get("event_types")
    if asked is None:
        return EVENT_TYPES
    if not isinstance(asked, list):
        raise checks.wrong_type("event_types", list, asked)
    for one in asked:
        if not isinstance(one, str):
            raise checks.wrong_type("event_types[]", str, one)
        if one not in EVENT_TYPES:
            raise checks.unsupported("event_types[]", one, EVENT_TYPES)
    if not asked:
        raise InvalidRequest(
            "'event_types' names no type.", param="event_types", code="invalid_value"
        )
    return tuple(one for one in EVENT_TYPES if one in asked)
