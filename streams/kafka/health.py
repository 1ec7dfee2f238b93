"""A process's health, readiness and metrics over HTTP, on a loopback port by default."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from aiohttp import web

from schemas.metrics import CONTENT_TYPE, READY, Metrics
from streams.settings import Settings

log = structlog.get_logger(__name__)

#: None when the process is ready, else what it waits for.
WaitingFor = Callable[[], str | None]


class HealthServer:
    """GET /health (200 while the loop runs), /ready (200 or 503 with the reason), /metrics."""

    def __init__(self, settings: Settings, metrics: Metrics, waiting_for: WaitingFor) -> None:
        self._settings = settings
        self._metrics = metrics
        self._waiting_for = waiting_for
        self._runner: web.AppRunner | None = None
        #: Where it listens, once started: useful when the settings say port 0.
        self.port = 0

    async def start(self) -> None:
        """Listens. Raises OSError if the port is taken."""
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/metrics", self._exposition)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        self._runner = runner
        await web.TCPSite(runner, self._settings.health_host, self._settings.health_port).start()
        self.port = int(runner.addresses[0][1])
        log.info("Health endpoint is up.", action="health_listening", port=self.port)

    async def stop(self) -> None:
        """Stops listening. Idempotent."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def _ready(self, _: web.Request) -> web.Response:
        waiting_for = self._waiting_for()
        if waiting_for is None:
            return web.json_response({"status": "ready"})
        return web.json_response({"status": "waiting", "for": waiting_for}, status=503)

    async def _exposition(self, _: web.Request) -> web.Response:
        self._metrics.gauge(READY).set(1 if self._waiting_for() is None else 0)
        return web.Response(body=self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})
