"""The simulated model server: OpenAI's inference routes, and `/sim/…` to watch and to steer it.

POST /v1/chat/completions | completions | embeddings | responses   GET /v1/models   GET /health
GET  /sim/requests     counts by request key (?keys=0, ?prefix=TEXT, ?at_least=2)
GET  /metrics          what vLLM would show: requests running and waiting, and more with an engine
POST /sim/reset        forget the counts
GET, POST /sim/config  options, merged in; {"models": {"m": {"hang": true}}} for one model
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from streams.simulator.answers import error_body, model_object, models_body
from streams.simulator.attempt import Attempt
from streams.simulator.bodies import BodyLog
from streams.simulator.call import BadRequestError, Call, Endpoint, parse_call
from streams.simulator.conduct import ConductError
from streams.simulator.fleet import Fleet
from streams.simulator.ledger import Ledger
from streams.simulator.metrics_page import CONTENT_TYPE, metrics_page
from streams.simulator.wire import write_answer

_MAX_BODY_BYTES = 64 << 20
#: Benchmarks open thousands of connections at once.
_BACKLOG = 4096


@dataclass(frozen=True, slots=True)
class SimulatorOptions:
    """What stays the same while the server runs.

    port: 0 picks a free one. models: names served, none for any. config: see Fleet.configure.
    log: counts and usage of each request, without content. bodies: what was sent, see BodyLog.
    """

    host: str = "127.0.0.1"
    port: int = 0
    models: tuple[str, ...] = ()
    api_key: str | None = None
    log: Path | None = None
    bodies: Path | None = None
    max_keys: int = 200_000
    config: dict[str, Any] = field(default_factory=dict)


class Simulator:
    """The server, as an async context manager or by start() and stop()."""

    def __init__(self, options: SimulatorOptions | None = None) -> None:
        self._options = options or SimulatorOptions()
        self.fleet = Fleet(self._options.models, self._options.config)
        self.ledger = Ledger(self._options.max_keys, self._options.log)
        self._bodies = None if self._options.bodies is None else BodyLog(self._options.bodies)
        self._bearer = None if self._options.api_key is None else f"Bearer {self._options.api_key}"
        self._endpoints = {endpoint.value: endpoint for endpoint in Endpoint}
        self._routes: dict[
            tuple[str, str], Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
        ] = {
            ("GET", "/health"): self._get_health,
            ("GET", "/metrics"): self._get_metrics,
            ("GET", "/v1/models"): self._get_models,
            ("GET", "/sim/requests"): self._get_requests,
            ("POST", "/sim/reset"): self._post_reset,
            ("GET", "/sim/config"): self._get_config,
            ("POST", "/sim/config"): self._post_config,
        }
        self._runner: web.ServerRunner | None = None
        #: The port it listens on, once started.
        self.port = 0

    @property
    def base_url(self) -> str:
        """Up to and with /v1, as OpenAI clients want it."""
        return f"http://{self._options.host}:{self.port}/v1"

    async def start(self) -> None:
        """Listens. Raises OSError if the port is taken."""
        server = web.Server(
            self._handle, request_factory=_request, handler_cancellation=True, access_log=None
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._options.host, self._options.port, backlog=_BACKLOG)
        await site.start()
        self.port = int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Stops listening and drops what is still being served."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self.fleet.retire()
        self.ledger.close()
        if self._bodies is not None:
            self._bodies.close()
            self._bodies = None

    async def __aenter__(self) -> Simulator:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.rel_url.raw_path
        endpoint = self._endpoints.get(path)
        if endpoint is not None and request.method == "POST":
            return await self._infer(request, endpoint)
        route = self._routes.get((request.method, path))
        if route is not None:
            return await route(request)
        if request.method == "GET" and path.startswith("/v1/models/"):
            return self._get_model(request, request.path.removeprefix("/v1/models/"))
        message = f"Unknown request URL: {request.method} {request.path[:200]}."
        return write_answer(request, 404, error_body(message, code="unknown_url"))

    async def _infer(self, request: web.BaseRequest, endpoint: Endpoint) -> web.StreamResponse:
        if self._bearer is not None and request.headers.get("Authorization") != self._bearer:
            body = error_body("Incorrect API key provided.", code="invalid_api_key")
            return write_answer(request, 401, body)
        data = b""
        try:
            data = await request.read()
            call = parse_call(endpoint, data)
        except BadRequestError as error:
            self._record(endpoint, data, None)
            return write_answer(request, 400, error_body(str(error), param=error.param))
        except web.HTTPRequestEntityTooLarge:
            return write_answer(request, 413, error_body("The request is too large."))
        engine = self.fleet.engine(call.model)
        if engine is None:
            return _no_model(request, call.model)
        call.count_tokens(*engine.token_range)
        self.ledger.begin(call)
        self._record(endpoint, data, call)
        return await Attempt(request, call, engine, self.ledger, self.fleet.seed).serve()

    def _record(self, endpoint: Endpoint, data: bytes, call: Call | None) -> None:
        if self._bodies is not None:
            self._bodies.record(endpoint.value, data, call)

    async def _get_health(self, request: web.BaseRequest) -> web.StreamResponse:
        return write_answer(request, 200, b'{"status":"ok"}')

    async def _get_metrics(self, request: web.BaseRequest) -> web.StreamResponse:
        return write_answer(request, 200, metrics_page(self.fleet), content_type=CONTENT_TYPE)

    async def _get_models(self, request: web.BaseRequest) -> web.StreamResponse:
        return write_answer(request, 200, models_body(self.fleet.models))

    def _get_model(self, request: web.BaseRequest, name: str) -> web.StreamResponse:
        if self.fleet.engine(name) is None:
            return _no_model(request, name)
        return write_answer(request, 200, msgspec.json.encode(model_object(name)))

    async def _get_requests(self, request: web.BaseRequest) -> web.StreamResponse:
        query = request.query
        at_least = query.get("at_least", "1")
        report = self.ledger.report(
            keys=query.get("keys") != "0",
            prefix=query.get("prefix", ""),
            at_least=int(at_least) if at_least.isdecimal() else 1,
        )
        report["engines"] = self.fleet.gauges()
        return write_answer(request, 200, msgspec.json.encode(report))

    async def _post_reset(self, request: web.BaseRequest) -> web.StreamResponse:
        self.ledger.reset()
        return write_answer(request, 200, b"{}")

    async def _get_config(self, request: web.BaseRequest) -> web.StreamResponse:
        return write_answer(request, 200, msgspec.json.encode(self.fleet.shown()))

    async def _post_config(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            change = msgspec.json.decode(await request.read(), type=dict[str, Any])
            self.fleet.configure(change)
        except (msgspec.DecodeError, ConductError) as error:
            return write_answer(request, 400, error_body(str(error)))
        return await self._get_config(request)


def _no_model(request: web.BaseRequest, model: str) -> web.StreamResponse:
    message = f"The model '{model[:200]}' does not exist."
    body = error_body(message, code="model_not_found", param="model")
    return write_answer(request, 404, body)


def _request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    return web.BaseRequest(
        message, payload, protocol, writer, task, loop, client_max_size=_MAX_BODY_BYTES
    )
