"""A fake gateway on a real port, in a thread: what the CLI's tests talk to.

It knows nothing of Kafka. A batch goes one step further along its script each time it is read;
a step `{"fails_with": 503}` is an error instead.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

API_KEY = "bh_fake"
Json = dict[str, Any]


def a_batch(batch_id: str, status: str = "in_progress", **fields: Any) -> Json:
    """A Batch object as the gateway would show it."""
    total, completed, failed = fields.pop("counts", (0, 0, 0))
    now = int(time.time())
    return {
        "id": batch_id,
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "errors": None,
        "input_file_id": "file-in",
        "completion_window": "24h",
        "status": status,
        "output_file_id": None,
        "error_file_id": None,
        "created_at": now - 42,
        f"{status}_at": now,
        "expires_at": now + 86_400,
        "request_counts": {"total": total, "completed": completed, "failed": failed},
        "metadata": None,
        **fields,
    }


@dataclass
class FakeGateway:
    """What the fake has, did and shall do wrong; change it between two requests.

    failures: (status, headers) of the next answers. cut_content_after: bytes after which content
    breaks off, one entry for each request. grows: how many bytes of a content there are, one entry
    for each request, and then all. ignore_range: answer 200 with the whole file.
    estimate: what is foreseen of any file; estimated: what was asked about them.
    usage: the next pages of a report.
    """

    base_url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    uploads: list[tuple[str, str]] = field(default_factory=list)
    batches: dict[str, list[Json]] = field(default_factory=dict)
    created: list[tuple[Json, str | None]] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    changes: list[Json] = field(default_factory=list)
    failures: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    estimate: Json = field(default_factory=dict)
    estimated: list[Json] = field(default_factory=list)
    usage: list[Json] = field(default_factory=list)
    grows: list[int] = field(default_factory=list)
    cut_content_after: list[int] = field(default_factory=list)
    ignore_range: bool = False
    html: bool = False

    def add_batch(self, *steps: Json) -> str:
        """A batch that shows these objects, one a read, and then the last one for ever."""
        self.batches[steps[0]["id"]] = list(steps)
        return str(steps[0]["id"])

    def app(self) -> web.Application:
        """The server."""
        app = web.Application(middlewares=[self._guard], client_max_size=1 << 30)
        app.add_routes(
            [
                web.post("/v1/files", self._post_file),
                web.get("/v1/files/{id}", self._get_file),
                web.get("/v1/files/{id}/content", self._get_content),
                web.post("/v1/files/{id}/cost-estimate", self._estimate),
                web.get("/v1/usage", self._usage),
                web.get("/v1/usage/realtime", self._usage),
                web.post("/v1/batches", self._post_batch),
                web.get("/v1/batches", self._list_batches),
                web.get("/v1/batches/{id}", self._get_batch),
                web.post("/v1/batches/{id}/cancel", self._cancel_batch),
                web.post("/v1/batches/{id}/retry", self._retry_batch),
                web.post("/v1/batches/{id}", self._change_batch),
                web.post("/v1/batches/{id}/{verb:pause|resume}", self._pause_batch),
            ]
        )
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append((request.method, request.path_qs))
        if self.html:
            return web.Response(text="<html>hello</html>", content_type="text/html")
        if request.headers.get("Authorization") != f"Bearer {API_KEY}":
            return _error(401, "Incorrect API key provided.", code="invalid_api_key")
        if self.failures:
            status, headers = self.failures.pop(0)
            return _error(status, "not now", headers=headers)
        response: web.StreamResponse = await handler(request)
        return response

    async def _post_file(self, request: web.Request) -> web.Response:
        form = await request.post()
        file = form["file"]
        assert isinstance(file, web.FileField)
        file_id = f"file-{len(self.files) + 1}"
        self.files[file_id] = file.file.read()
        self.uploads.append((str(form["purpose"]), file.filename))
        return web.json_response(self._file(file_id))

    def _file(self, file_id: str) -> Json:
        return {"id": file_id, "object": "file", "bytes": len(self.files[file_id])}

    async def _get_file(self, request: web.Request) -> web.Response:
        file_id = request.match_info["id"]
        if file_id not in self.files:
            return _error(404, f"No such File object: {file_id}")
        return web.json_response(self._file(file_id))

    async def _get_content(self, request: web.Request) -> web.StreamResponse:
        data = self.files[request.match_info["id"]]
        if self.grows:
            data = data[: self.grows.pop(0)]
        start = request.http_range.start or 0
        partial = bool(start) and not self.ignore_range
        if partial and start >= len(data):
            return _error(416, "The requested range lies behind the end of the file.")
        rest = data[start:] if partial else data
        response = web.StreamResponse(status=206 if partial else 200)
        response.content_length = len(rest)
        await response.prepare(request)
        if self.cut_content_after:
            await response.write(rest[: self.cut_content_after.pop(0)])
            assert request.transport is not None
            request.transport.close()
            return response
        await response.write(rest)
        return response

    async def _estimate(self, request: web.Request) -> web.Response:
        self.estimated.append(await request.json())
        return web.json_response({"input_file_id": request.match_info["id"], **self.estimate})

    async def _usage(self, request: web.Request) -> web.Response:
        if request.query.get("format") == "csv":
            return web.Response(text="day,model\r\n2026-11-28,m1\r\n", content_type="text/csv")
        return web.json_response(self.usage.pop(0))

    async def _retry_batch(self, request: web.Request) -> web.Response:
        origin = request.match_info["id"]
        if not self.batches[origin][0].get("error_file_id"):
            return _error(409, f"Cannot retry batch '{origin}': it has no failed lines.")
        self.changes.append(await request.json())
        made = a_batch(f"{origin}-again", "completed", counts=(2, 2, 0), origin_batch_id=origin)
        self.add_batch(made)
        return web.json_response(made)

    async def _post_batch(self, request: web.Request) -> web.Response:
        body = await request.json()
        key = request.headers.get("Idempotency-Key")
        for earlier, earlier_key in self.created:
            if key == earlier_key and earlier != body:
                return _error(
                    409,
                    "Idempotency conflict: another request.",
                    headers={"x-should-retry": "false"},
                )
        self.created.append((body, key))
        batch_id = f"batch_{len(self.created)}"
        shown = {name: body.get(name) for name in ("endpoint", "input_file_id", "metadata")}
        steps = self.batches.pop("next", None) or [a_batch(batch_id, "validating")]
        self.batches[batch_id] = [{**step, "id": batch_id, **shown} for step in steps]
        return web.json_response(self.batches[batch_id][0])

    async def _get_batch(self, request: web.Request) -> web.Response:
        batch_id = request.match_info["id"]
        steps = self.batches.get(batch_id)
        if not steps:
            return _error(404, f"No batch found with id '{batch_id}'.")
        step = steps.pop(0) if len(steps) > 1 else steps[0]
        if "fails_with" in step:
            return _error(step["fails_with"], "not now", headers={"Retry-After": "0"})
        return web.json_response(step)

    async def _list_batches(self, request: web.Request) -> web.Response:
        every = [steps[0] for steps in reversed(self.batches.values())]
        after = request.query.get("after")
        ids = [batch["id"] for batch in every]
        start = ids.index(after) + 1 if after else 0
        page = every[start : start + int(request.query.get("limit", "20"))]
        more = start + len(page) < len(every)
        return web.json_response({"object": "list", "data": page, "has_more": more})

    async def _cancel_batch(self, request: web.Request) -> web.Response:
        batch_id = request.match_info["id"]
        batch = self.batches[batch_id][0]
        if batch["status"] == "completed":
            return _error(409, "Cannot cancel a batch with status 'completed'.")
        done = batch["request_counts"]["completed"], batch["request_counts"]["failed"]
        counts = (batch["request_counts"]["total"], *done)
        self.batches[batch_id] = [
            a_batch(batch_id, "cancelling", counts=counts),
            a_batch(batch_id, "cancelled", counts=counts),
        ]
        return web.json_response(self.batches[batch_id][0])

    async def _pause_batch(self, request: web.Request) -> web.Response:
        batch_id, verb = request.match_info["id"], request.match_info["verb"]
        batch = self.batches[batch_id][0]
        if batch["status"] == "completed":
            return _error(409, f"Cannot {verb} a batch with status 'completed'.")
        paused_at = int(time.time()) if verb == "pause" else None
        self.batches[batch_id] = [{**batch, "paused_at": paused_at}]
        return web.json_response(self.batches[batch_id][0])

    async def _change_batch(self, request: web.Request) -> web.Response:
        batch_id, changes = request.match_info["id"], await request.json()
        self.changes.append(changes)
        self.batches[batch_id] = [{**self.batches[batch_id][0], **changes}]
        return web.json_response(self.batches[batch_id][0])


def _error(
    status: int, message: str, *, code: str | None = None, headers: dict[str, str] | None = None
) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return web.json_response({"error": error}, status=status, headers=headers)


@contextmanager
def running_gateway() -> Iterator[FakeGateway]:
    """A fake gateway that listens on a free port until the end."""
    fake = FakeGateway()
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        runner = web.AppRunner(fake.app(), shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        fake.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(10), "the fake gateway did not start"
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


def script(batch_id: str, *steps: tuple[str, tuple[int, int, int]]) -> Sequence[Json]:
    """Batch objects of (status, (total, completed, failed)), for add_batch."""
    return [a_batch(batch_id, status, counts=counts) for status, counts in steps]
