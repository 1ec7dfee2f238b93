"""The sender on real sockets: which address it connects to, redirects, bodies and time-outs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from streams.adapters.webhook_sender import HTTPWebhookSender
from streams.domain.webhooks.address import is_public
from streams.domain.webhooks.deliveries import Attempt
from streams.domain.webhooks.events import body_of, headers_of
from tests.support.webhooks import SECRET, receiving
from tests.unit.test_webhooks import delivery


class Rebinding(AbstractResolver):
    """A name that means another address each time it is asked for."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        address = self.addresses.pop(0) if len(self.addresses) > 1 else self.addresses[0]
        found = ResolveResult(
            hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0
        )
        return [found]

    async def close(self) -> None:
        return None


@asynccontextmanager
async def sender(**options: Any) -> AsyncIterator[HTTPWebhookSender]:
    made = HTTPWebhookSender(**options)
    try:
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def raw(answer: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers each request with these bytes, and then leaves it open."""
    asked: list[bytes] = []

    serving: list[asyncio.Task[Any] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            while await reader.read(65_536):
                pass
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?secret=1", asked
    finally:
        server.close()
        await asyncio.gather(*(task for task in serving if task is not None))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
async def test_a_private_address_is_never_connected_to(host: str) -> None:
    async with raw(b"HTTP/1.1 200 OK\r\n\r\n") as (url, asked), sender() as private:
        attempt = await private.post(url.replace("127.0.0.1", host), b"{}", {})
        assert (attempt.status_code, attempt.delivered) == (None, False)
        assert attempt.error == "blocked_address"
        assert asked == []


async def test_a_name_that_comes_to_mean_a_private_address_is_not_followed() -> None:
    """The public name is played by an address of loopback that this test calls public."""

    def public(address: str) -> bool:
        return address == "127.0.0.1" or is_public(address)

    resolver = Rebinding("127.0.0.1", "127.0.0.2")
    async with (
        raw(b"HTTP/1.1 200 OK\r\n\r\n") as (url, asked),
        sender(resolver=resolver, allowed=public) as rebound,
    ):
        named = url.replace("127.0.0.1", "hook.example")
        assert await rebound.post(named, b"{}", {}) == Attempt(200)
        assert await rebound.post(named, b"{}", {}) == Attempt(error="blocked_address")
        assert len(asked) == 1


async def test_a_redirect_is_not_followed() -> None:
    async with raw(b"HTTP/1.1 200 OK\r\n\r\n") as (there, asked):
        moved = b"HTTP/1.1 307 Moved\r\nLocation: " + there.encode() + b"\r\n\r\n"
        async with raw(moved) as (url, _), sender(allow_private=True) as following:
            assert await following.post(url, b"{}", {}) == Attempt(307)
        assert asked == []


@pytest.mark.parametrize(
    ("answer", "attempt"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n" + b"x" * 9999, Attempt(200)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe", Attempt(200)),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", Attempt(error="unreachable")),
        (b"no HTTP at all\r\n\r\n", Attempt(error="unreachable")),
        (b"HTTP/1.1 200", Attempt(error="timeout")),
    ],
)
async def test_no_body_is_waited_for_and_no_nonsense_believed(
    answer: bytes, attempt: Attempt
) -> None:
    async with raw(answer) as (url, _), sender(allow_private=True, timeout_s=3.0) as patient:
        assert await patient.post(url, b"{}", {}) == attempt


async def test_nobody_there_is_unreachable() -> None:
    async with sender(allow_private=True) as alone:
        attempt = await alone.post("http://127.0.0.1:1/hook", b"{}", {})
        assert attempt == Attempt(error="unreachable")


async def test_what_is_sent_is_what_the_sdk_unwraps() -> None:
    from streams.domain.clock import SystemClock

    async with receiving() as receiver, sender(allow_private=True) as sends:
        body = body_of(delivery())
        headers = headers_of("evt_1", body, [SECRET], SystemClock().now_ms())
        assert await sends.post(receiver.url, body, headers) == Attempt(200)
        assert receiver.got == [("evt_1", "batch.completed", "batch_1")]
