"""Changing a webhook endpoint: update, rotate_secret, delete as OpenAI has them; enabling is ours.

An endpoint's record holds all of it, so of two changes that began from the same one only one may
count: the first in the log, for every reader. One at a time is made in a gateway; where another
gateway's came first, the change is not made, and whoever asked for it is told.
"""

from __future__ import annotations

import secrets

from aiohttp import web

from api import checks, views
from api.errors import Conflict, Unavailable
from api.gateway import GATEWAY, Gateway
from api.http.body import json_object
from api.routes import webhook_views, webhooks
from schemas.records import WebhookCommandKind, WebhookEndpoint
from schemas.topics import WEBHOOK
from streams.domain.ids import new_write_id
from streams.domain.webhooks.endpoints import (
    MAX_OLD,
    TooManySecretsError,
    deleted,
    record_key,
    rotated,
    updated,
    written,
)
from streams.domain.webhooks.events import SECRET_BYTES, secret_of

_KEEP = "keep_old_secret_active_for_24_hours"

routes = web.RouteTableDef()


@routes.post(webhooks.BASE + "/{endpoint_id}")
async def update(request: web.Request) -> web.Response:
    """Changes what is given, and leaves the rest."""
    gateway = request.app[GATEWAY]
    body = await json_object(request)
    checks.known_only(body, ("enabled", "event_types", "name", "url"))
    name = webhooks.name_of(body) if "name" in body else None
    url = webhooks.url_of(body, gateway) if "url" in body else None
    types = webhooks.event_types_of(body) if "event_types" in body else None
    enabled = _flag(body, "enabled")
    return await _update(request, name=name, url=url, event_types=types, enabled=enabled)


@routes.post(webhooks.BASE + "/{endpoint_id}/enable")
async def enable(request: web.Request) -> web.Response:
    """Lets a disabled endpoint be told of events again, from now on, whoever disabled it."""
    return await _update(request, enabled=True)


@routes.post(webhooks.BASE + "/{endpoint_id}/rotate_secret")
async def rotate_secret(request: web.Request) -> web.Response:
    """Makes a new secret, and shows it this once."""
    gateway = request.app[GATEWAY]
    body = await json_object(request, empty=True)
    checks.known_only(body, (_KEEP,))
    keep = _flag(body, _KEEP) or False
    async with webhooks.lock_of(request):
        before = await _latest(request)
        secret = secret_of(secrets.token_bytes(SECRET_BYTES))
        try:
            now = rotated(before, secret, gateway.clock.now_ms(), keep=keep)
        except TooManySecretsError as error:
            raise Conflict(
                f"{MAX_OLD} secrets of the last 24 hours are still good. Wait, or end them all "
                f"at once: rotate without '{_KEEP}'."
            ) from error
        await _write(gateway, before, now)
    disabled = await gateway.webhooks.disabled_ms(now.tenant, now.endpoint_id)
    return views.answer(webhook_views.endpoint(now, disabled, secret=True))


@routes.delete(webhooks.BASE + "/{endpoint_id}")
async def delete(request: web.Request) -> web.Response:
    """Deletes an endpoint, its log, and what it has not been told yet."""
    gateway = request.app[GATEWAY]
    async with webhooks.lock_of(request):
        before = await _latest(request)
        await _write(gateway, before, deleted(before, gateway.clock.now_ms()))
    return views.answer(
        {"id": before.endpoint_id, "object": "webhook_endpoint.deleted", "deleted": True}
    )


async def _update(
    request: web.Request,
    *,
    name: str | None = None,
    url: str | None = None,
    event_types: tuple[str, ...] | None = None,
    enabled: bool | None = None,
) -> web.Response:
    gateway = request.app[GATEWAY]
    async with webhooks.lock_of(request):
        before = await _latest(request)
        now = updated(
            before,
            gateway.clock.now_ms(),
            name=name,
            url=url,
            event_types=event_types,
            enabled=enabled,
        )
        await _write(gateway, before, now)
    if not enabled:
        return views.answer(await webhooks.endpoint_shown(gateway, now))
    # It may have been disabled because nothing got through.
    await webhooks.tell_worker(gateway, now, WebhookCommandKind.ENABLE)
    return views.answer(webhook_views.endpoint(now, None))


async def _latest(request: web.Request) -> WebhookEndpoint:
    """The endpoint as the log has it now. Raises NotFound."""
    await request.app[GATEWAY].sync()
    return await webhooks.endpoint_of(request)


async def _write(gateway: Gateway, before: WebhookEndpoint, now: WebhookEndpoint) -> None:
    """Publishes what has changed. Raises Conflict if another change came first, Unavailable."""
    if now is before:
        return
    now = written(now, before, new_write_id())
    key = record_key(now)
    if not await gateway.publish(WEBHOOK, key, now):
        # Only the log knows whether it counts.
        raise Unavailable("The server is not able to answer just now.", code="unavailable")
    if not await gateway.webhooks.won(key):
        raise Conflict(
            "The webhook endpoint was changed at the same time by another request, and this "
            "change was not made. Look at the endpoint, then ask again."
        )


def _flag(body: dict[str, object], name: str) -> bool | None:
    found = body.get(name)
    if found is not None and not isinstance(found, bool):
        raise checks.wrong_type(name, bool, found)
    return found
