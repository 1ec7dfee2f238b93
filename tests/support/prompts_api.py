"""Calls to the gateway's prompt routes, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from tests.support.gateway import GatewayUnderTest

Json = dict[str, Any]


@dataclass
class Answer:
    """An answer: its JSON, its status and its headers."""

    status: int
    body: Json
    headers: Mapping[str, str]

    @property
    def etag(self) -> str:
        """The ETag."""
        return self.headers["ETag"]

    @property
    def error(self) -> Json:
        """The error in the envelope."""
        found: Json = self.body["error"]
        assert set(found) == {"message", "type", "param", "code"}
        return found

    @property
    def refusal(self) -> tuple[int, str, str | None]:
        """Status, code and param of an error."""
        return self.status, self.error["code"], self.error["param"]


class PromptsApi:
    """One tenant's view of a gateway's prompts."""

    def __init__(self, gateway: GatewayUnderTest, tenant: str = "acme") -> None:
        self._http: aiohttp.ClientSession = gateway.http(tenant)

    async def call(
        self, method: str, path: str = "", *, headers: Mapping[str, str] | None = None, **body: Any
    ) -> Answer:
        """A request below /v1/prompts with this JSON body, none if it is empty; or `raw` bytes."""
        sent = body.pop("raw", None) or body or None
        how: Json = {"data": sent} if isinstance(sent, bytes) else {"json": sent}
        async with self._http.request(
            method, f"/v1/prompts{path}", headers=headers, **how
        ) as answer:
            return Answer(answer.status, await answer.json(), answer.headers)

    async def get(self, path: str = "", **query: Any) -> Answer:
        """A read."""
        asked = "&".join(f"{name}={value}" for name, value in query.items())
        return await self.call("GET", f"{path}?{asked}" if asked else path)

    async def create(self, slug: str, text: str = "Say {{it}}.", **more: Any) -> Answer:
        """A create with one message."""
        return await self.call("POST", slug=slug, **{"messages": says(text), **more})

    async def add(self, slug: str, text: str = "Say {{it}}.", **more: Any) -> Answer:
        """One version more."""
        return await self.call("POST", f"/{slug}/versions", **{"messages": says(text), **more})

    async def publish(self, slug: str, version: int | None, **more: Any) -> Answer:
        """Publishes, or withdraws."""
        return await self.call("POST", f"/{slug}/publish", version=version, **more)

    async def delete(self, slug: str, **more: Any) -> Answer:
        """Deletes."""
        return await self.call("DELETE", f"/{slug}", **more)

    async def render(self, slug: str, **body: Any) -> Answer:
        """A preview."""
        return await self.call("POST", f"/{slug}/render", **body)


def says(text: str) -> list[Json]:
    """Messages with one text."""
    return [{"role": "user", "content": text}]
