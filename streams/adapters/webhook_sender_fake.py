"""A public fake of tenants' endpoints, for tests."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping

from streams.domain.webhooks.deliveries import Attempt


class FakeWebhookSender:
    """A WebhookSender that keeps what it was given.

    attempts: what a URL's next attempts come to, then 200. hanging: URLs that answer only once they
    are taken out. most: the most attempts at once, by URL.
    """

    def __init__(self) -> None:
        self.attempts: dict[str, list[Attempt]] = {}
        self.hanging: set[str] = set()
        self.sent: list[tuple[str, str]] = []
        #: Headers of each, in the same order.
        self.headers: list[Mapping[str, str]] = []
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.closed = False

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Attempt:
        """See WebhookSender.post."""
        self.sent.append((url, headers["webhook-id"]))
        self.headers.append(headers)
        self.running[url] += 1
        self.most[url] = max(self.most[url], self.running[url])
        try:
            while url in self.hanging:  # noqa: ASYNC110 - a plain set is easy for tests
                await asyncio.sleep(0.005)
        finally:
            self.running[url] -= 1
        planned = self.attempts.get(url)
        return planned.pop(0) if planned else Attempt(200)

    async def close(self) -> None:
        """See WebhookSender.close."""
        self.closed = True
