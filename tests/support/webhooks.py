"""A receiver of webhooks, and what a tenant's endpoint is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from openai import OpenAI

from schemas.records import WebhookEndpoint
from streams.domain.webhooks.events import EVENT_TYPES, secret_of

SECRET = secret_of(bytes(range(32)))


def endpoint(
    url: str, endpoint_id: str = "we_1", tenant: str = "acme", types: tuple[str, ...] = EVENT_TYPES
) -> WebhookEndpoint:
    """An endpoint as a gateway would write it."""
    return WebhookEndpoint(
        endpoint_id=endpoint_id,
        tenant=tenant,
        name="test",
        url=url,
        event_types=types,
        secret=SECRET,
        created_at_ms=1_700_000_000_000,
    )


@dataclass
class Receiver:
    """Checks each event with the official SDK. answers: statuses to give first; then 200."""

    url: str = ""
    secret: str = SECRET
    answers: list[int] = field(default_factory=list)
    got: list[tuple[str, str, str]] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)

    async def receive(self, request: web.Request) -> web.Response:
        client = OpenAI(api_key="none", webhook_secret=self.secret)
        event = client.webhooks.unwrap(await request.read(), dict(request.headers))
        client.close()
        assert event.id == request.headers["webhook-id"]
        self.got.append((event.id, event.type, event.data.id))  # type: ignore[union-attr]
        status = self.answers.pop(0) if self.answers else 200
        if status == 200:
            self.accepted.append(event.id)
        return web.Response(status=status)

    def accepted_of(self, about: str) -> str:
        """The type of the event about something that was accepted, or nothing."""
        return next((t for i, t, of in self.got if of == about and i in self.accepted), "")


@asynccontextmanager
async def receiving(*answers: int) -> AsyncIterator[Receiver]:
    """A receiver on a free port of loopback."""
    receiver = Receiver(answers=list(answers))
    app = web.Application()
    app.router.add_post("/hook", receiver.receive)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield receiver
    finally:
        await runner.cleanup()
