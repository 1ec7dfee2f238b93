"""Where commands write: results on stdout, everything else on stderr, JSON as one line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from rich.console import Console


def out(text: str = "") -> None:
    """A line of the result."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """A line for the person who watches."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def out_json(value: Any) -> None:
    """One JSON line of the result."""
    out(msgspec.json.encode(value).decode())


def console(*, stderr: bool = False) -> Console:
    """A rich console on the stream of now, which tests replace."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def is_live() -> bool:
    """Whether somebody watches stderr on a terminal that can move its cursor."""
    return sys.stderr.isatty() and console(stderr=True).is_terminal
