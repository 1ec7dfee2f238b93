"""What the gateway needs to preview prompts that only the sandbox can render, as a Protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class TextRenderer(Protocol):
    """Renders templates where they can harm nobody: `streams.rendering` does."""

    async def render(
        self, sources: Sequence[str], variables: bytes, *, fair_key: str
    ) -> list[bytes]:
        """The text of each template as a JSON string, given a JSON object of variables.

        fair_key: callers with different keys take turns. Raises RenderError.
        """
        ...

    async def stop(self) -> None:
        """Ends its processes, if there are any."""
        ...
