"""The catalogue of models: the table's names, and what upstreams that serve '*' list themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from api.app import listening
from api.model_catalogue import CACHE_S, ModelCatalogue
from streams.domain.clock import ManualClock
from streams.domain.upstreams import parse_upstreams


class Upstream:
    """An upstream's /models, with faults."""

    def __init__(self) -> None:
        self.asked = 0
        self.authorization: str | None = None
        self.body = b'{"object":"list","data":[{"id":"x","created":7,"object":"model"}]}'
        self.status = 200

    async def models(self, request: web.Request) -> web.Response:
        self.asked += 1
        self.authorization = request.headers.get("Authorization")
        return web.Response(body=self.body, status=self.status, content_type="application/json")


@asynccontextmanager
async def catalogue_of(
    upstream: Upstream, clock: ManualClock, port: int | None = None
) -> AsyncIterator[ModelCatalogue]:
    app = web.Application()
    app.router.add_get("/v1/models", upstream.models)
    async with listening(app, "127.0.0.1", 0) as bound:
        table = parse_upstreams(
            {
                "upstreams": [
                    {
                        "name": "star",
                        "base_url": f"http://127.0.0.1:{port or bound}/v1",
                        "models": ["*", "named"],
                        "api_key_env": "CATALOGUE_TEST_KEY",
                    }
                ]
            }
        )
        catalogue = ModelCatalogue(table, clock)
        yield catalogue
        await catalogue.close()


async def test_an_upstream_that_serves_any_model_is_asked_with_its_key_and_believed_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CATALOGUE_TEST_KEY", "k")
    upstream, clock = Upstream(), ManualClock()
    async with catalogue_of(upstream, clock) as catalogue:
        for _ in range(3):
            models = await catalogue.models()
            assert [(m.id, m.owned_by) for m in models] == [("named", "star"), ("x", "star")]
        assert (upstream.asked, upstream.authorization) == (1, "Bearer k")
        clock.advance(CACHE_S)
        await catalogue.models()
        assert upstream.asked == 2


@pytest.mark.parametrize(
    ("status", "body"),
    [(500, b""), (200, b"<html>"), (200, b"[]"), (200, b'{"data":[{"id":1}]}'), (404, b"{}")],
)
async def test_what_an_upstream_listed_before_stands_while_it_is_in_trouble(
    status: int, body: bytes
) -> None:
    upstream, clock = Upstream(), ManualClock()
    async with catalogue_of(upstream, clock) as catalogue:
        await catalogue.models()
        clock.advance(CACHE_S)
        upstream.status, upstream.body = status, body
        for _ in range(3):
            assert [m.id for m in await catalogue.models()] == ["named", "x"]
        assert upstream.asked == 2


async def test_an_upstream_that_is_not_there_leaves_the_named_models() -> None:
    async with catalogue_of(Upstream(), ManualClock(), port=1) as catalogue:
        assert [m.id for m in await catalogue.models()] == ["named"]


async def test_an_endless_list_is_not_read_to_its_end() -> None:
    upstream = Upstream()
    upstream.body = b'{"data":[' + b" " * (5 * 1024 * 1024) + b"]}"
    async with catalogue_of(upstream, ManualClock()) as catalogue:
        assert [m.id for m in await catalogue.models()] == ["named"]
