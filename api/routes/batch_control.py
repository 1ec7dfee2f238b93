"""/v1/batches/{id}: pause, resume, and change of priority and deadline. These routes are ours.

An answer shows the batch as it is once the command is folded. What changes nothing writes no
command, so repeating a request is harmless.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from api import checks, views
from api.batches.request import priority_in
from api.errors import Conflict, InvalidRequest
from api.gateway import GATEWAY, Gateway
from api.http.body import json_object
from api.read_model.control_rows import CHANGEABLE, PAUSABLE, with_control
from api.routes.batches import found_batch
from schemas.records import BatchChange, BatchPause, BatchResume, BatchSnapshot, BatchStatus
from schemas.topics import BATCH_COMMAND
from streams.domain.batch.control import MAX_LIFE_MS, Control
from streams.domain.ids import new_command_id

_KNOWN = ("priority", "expires_at")

routes = web.RouteTableDef()


@routes.post("/v1/batches/{batch_id}/pause")
async def pause(request: web.Request) -> web.Response:
    """Asks the controller to release no new line."""
    batch = await _judged(request, "pause", PAUSABLE)
    if batch.paused_at_ms is None:
        batch = await _sent(request.app[GATEWAY], batch, BatchPause)
    return views.answer(request.app[GATEWAY].shown(batch))


@routes.post("/v1/batches/{batch_id}/resume")
async def resume(request: web.Request) -> web.Response:
    """Asks the controller to go on."""
    # In finalizing there is nothing to go on with, but a repeated resume must find it fine.
    batch = await _judged(request, "resume", CHANGEABLE)
    if batch.paused_at_ms is not None:
        batch = await _sent(request.app[GATEWAY], batch, BatchResume)
    return views.answer(request.app[GATEWAY].shown(batch))


@routes.post("/v1/batches/{batch_id}")
async def change(request: web.Request) -> web.Response:
    """Asks the controller to change the priority, the end of the window, or both."""
    gateway = request.app[GATEWAY]
    body = await json_object(request)
    checks.known_only(body, _KNOWN)
    batch = await _judged(request, "change", CHANGEABLE)
    asked = _asked(body, batch, gateway)
    if asked:
        batch = await _sent(gateway, batch, BatchChange, **asked)
    return views.answer(request.app[GATEWAY].shown(batch))


async def _judged(
    request: web.Request, verb: str, allowed: tuple[BatchStatus, ...]
) -> BatchSnapshot:
    """The batch, if it is in one of these states. Raises NotFound, Conflict."""
    # Its state is judged by the newest snapshot there is.
    await request.app[GATEWAY].sync()
    batch = await found_batch(request)
    if batch.status not in allowed:
        raise Conflict(f"Cannot {verb} a batch with status '{batch.status.value}'.")
    return batch


def _asked(body: Mapping[str, Any], batch: BatchSnapshot, gateway: Gateway) -> dict[str, int]:
    """What of the body is a change. Raises InvalidRequest, Conflict."""
    priority, expires_at = priority_in(body), body.get("expires_at")
    if priority is None and expires_at is None:
        raise InvalidRequest(
            "Give 'priority', 'expires_at', or both.", code="missing_required_parameter"
        )
    asked: dict[str, int] = {}
    if priority is not None and priority != batch.priority:
        asked["priority"] = priority
    if expires_at is not None:
        expires_at_ms = _expires_at_s(expires_at, batch, gateway) * 1000
        if expires_at_ms != batch.expires_at_ms:
            asked["expires_at_ms"] = expires_at_ms
    return asked


def _expires_at_s(value: object, batch: BatchSnapshot, gateway: Gateway) -> int:
    """The new end of the window, in Unix seconds."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise checks.wrong_type("expires_at", int, value)
    now_s, created_s = gateway.clock.now_ms() // 1000, batch.created_at_ms // 1000
    if batch.expires_at_ms // 1000 <= now_s:
        raise Conflict("Cannot change the window of a batch once it is over.")
    longest_s = min(max(gateway.settings.completion_windows.values()), MAX_LIFE_MS // 1000)
    # A batch keeps what it was given, even if the operator allows less by now.
    latest_s = max(created_s + longest_s, batch.expires_at_ms // 1000)
    return checks.within("expires_at", value, now_s + 1, latest_s)


async def _sent(
    gateway: Gateway, batch: BatchSnapshot, kind: type[Control], **said: int
) -> BatchSnapshot:
    """Writes the command; the batch as it is once the command is folded."""
    command = kind(
        command_id=new_command_id(),
        batch_id=batch.batch_id,
        tenant=batch.tenant,
        at_ms=gateway.clock.now_ms(),
        **said,
    )
    await gateway.publish(BATCH_COMMAND, batch.batch_id, command)
    return with_control(batch, command)
