"""The engine's own word on how it does: its Prometheus page."""

from __future__ import annotations

from typing import Protocol

from streams.domain.gate.page import EngineReading


class EngineMetricsError(Exception):
    """The page could not be had in time, is too large, or is not an engine's."""


class EngineMetrics(Protocol):
    """One engine's page."""

    async def read(self) -> EngineReading:
        """What it says now, as it says it: the numbers may be impossible.

        Raises EngineMetricsError, and nothing else, within a few seconds whatever the server does.
        """
        ...

    async def close(self) -> None:
        """Closes the connection. Idempotent."""
        ...
