"""The port to tenants' webhook endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from streams.domain.webhooks.deliveries import Attempt


class WebhookSender(Protocol):
    """Posts events."""

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Attempt:
        """One attempt, bounded in time; never raises for what the other side does.

        An address that is not allowed is never connected to.
        """
        ...

    async def close(self) -> None:
        """Ends what is open."""
        ...
