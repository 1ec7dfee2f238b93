"""Where commands write: results on stdout, everything else on stderr, JSON as one line."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from rich.console import Console


#: Characters that move a terminal's cursor, colour it, or turn the direction of its text.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_CONTROL_IN_LINES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def printable(text: str, *, lines: bool = False) -> str:
    """Somebody else's text, with its control characters written out, as `\\x1b`.

    lines: line breaks and tabs stay.
    """
    return (_CONTROL_IN_LINES if lines else _CONTROL).sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


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
