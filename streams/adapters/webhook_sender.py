"""Posts webhooks over HTTP, to public addresses only.

The address is judged when a socket for it is about to be made, so it is the very one that is
connected to: whatever a name meant before, and whether the URL has a name or an address.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver

from streams.domain.webhooks.address import is_public
from streams.domain.webhooks.deliveries import Attempt

#: All of an attempt, and its connection.
TIMEOUT_S, _CONNECT_S = 15.0, 5.0
#: Bounds of an answer's headers, of which we use none. Its body is not read at all.
_MAX_HEADER_BYTES, _MAX_HEADERS_BYTES = 4096, 16_384


class BlockedAddressError(OSError):
    """This address is not one that webhooks may go to."""


class HTTPWebhookSender:
    """A WebhookSender over aiohttp. Make it where a loop runs.

    resolver, allowed: for tests; who turns names into addresses, and which of these will do.
    """

    def __init__(
        self,
        *,
        allow_private: bool = False,
        timeout_s: float = TIMEOUT_S,
        resolver: AbstractResolver | None = None,
        allowed: Callable[[str], bool] = is_public,
    ) -> None:
        self._allowed = (lambda _: True) if allow_private else allowed
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                force_close=True,
                use_dns_cache=False,
                resolver=resolver,
                socket_factory=self._socket,
            ),
            headers={"User-Agent": "backhaul-webhooks", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_S),
            auto_decompress=False,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADERS_BYTES,
            # A proxy of the environment's would connect for us, unjudged.
            trust_env=False,
        )

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Attempt:
        """See WebhookSender.post."""
        try:
            async with self._session.post(
                url,
                data=body,
                headers={**headers, "Content-Type": "application/json"},
                allow_redirects=False,
            ) as response:
                response.close()
                return Attempt(response.status)
        except TimeoutError:
            return Attempt(error="timeout")
        except aiohttp.ClientConnectorError as error:
            blocked = isinstance(error.os_error, BlockedAddressError)
            return Attempt(error="blocked_address" if blocked else "unreachable")
        except (aiohttp.ClientError, OSError, ValueError):
            return Attempt(error="unreachable")

    async def close(self) -> None:
        """See WebhookSender.close."""
        await self._session.close()

    def _socket(self, info: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, address = info
        if not self._allowed(str(address[0])):
            raise BlockedAddressError(errno.EACCES, "not an address that webhooks may go to")
        return socket.socket(family, kind, protocol)
