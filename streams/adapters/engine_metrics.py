"""Reads an engine's Prometheus page over HTTP, bounded in time and size."""

from __future__ import annotations

import aiohttp

from streams.domain.gate.page import EngineReading, NotAnEngineError, read_page
from streams.ports.engine_metrics import EngineMetricsError

#: Younger than what the gate takes for stale, so that one slow answer is not yet blindness.
TIMEOUT_S = 1.5
#: vLLM's page has some hundred kilobytes.
MAX_BYTES = 4 * 1024 * 1024
_OK = 200


class HTTPEngineMetrics:
    """An EngineMetrics over aiohttp. Make it where a loop runs.

    No key is sent: engines show this page to everybody, and it may be another server's.
    """

    def __init__(
        self, url: str, *, timeout_s: float = TIMEOUT_S, max_bytes: int = MAX_BYTES
    ) -> None:
        self._url = url
        self._max_bytes = max_bytes
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1),
            # Compressed answers are refused, because a small one may unfold to any size.
            headers={"Accept-Encoding": "identity", "User-Agent": "backhaul"},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            trust_env=False,
        )

    async def read(self) -> EngineReading:
        """See EngineMetrics.read."""
        try:
            async with self._session.get(self._url, allow_redirects=False) as response:
                if response.status != _OK:
                    raise EngineMetricsError(f"status {response.status}")
                page = bytearray()
                while part := await response.content.readany():
                    page += part
                    if len(page) > self._max_bytes:
                        response.close()
                        raise EngineMetricsError("too large")
            return read_page(page.decode("utf-8", "replace"))
        except NotAnEngineError as error:
            raise EngineMetricsError("not an engine's page") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Not chained: aiohttp's errors can hold parts of a URL or of an answer.
            raise EngineMetricsError(type(error).__name__) from None

    async def close(self) -> None:
        """See EngineMetrics.close."""
        await self._session.close()
