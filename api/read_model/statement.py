"""What the rows of each topic are folded with."""

from __future__ import annotations

from typing import Any

#: SQL, and its parameters.
Statement = tuple[str, tuple[Any, ...]]
