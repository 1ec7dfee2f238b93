"""An EngineMetrics in memory, for tests: it shows whatever page it is given."""

from __future__ import annotations

from streams.domain.gate.page import EngineReading, NotAnEngineError, read_page
from streams.ports.engine_metrics import EngineMetricsError


class FakeEngineMetrics:
    """Shows `page`; None is a server that doesn't answer with one."""

    def __init__(self, page: str | None = None, *, max_bytes: int = 4096) -> None:
        self.page = page
        self.reads = 0
        self.closed = False
        self._max_bytes = max_bytes

    async def read(self) -> EngineReading:
        """See EngineMetrics.read."""
        self.reads += 1
        if self.page is None:
            raise EngineMetricsError("no page")
        if len(self.page.encode()) > self._max_bytes:
            raise EngineMetricsError("too large")
        try:
            return read_page(self.page)
        except NotAnEngineError as error:
            raise EngineMetricsError("not an engine's page") from error

    async def close(self) -> None:
        """See EngineMetrics.close."""
        self.closed = True
