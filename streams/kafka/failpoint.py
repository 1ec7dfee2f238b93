"""Dying at a named step, so that tests can kill a process between any two steps.

`BACKHAUL_FAILPOINT=controller.effects_sent:3` ends the process, as `kill -9` would, when it
reaches that point for the third time. Without the variable a point costs one comparison.
"""

from __future__ import annotations

import os

#: What a shell reports for a process killed by SIGKILL.
EXIT_CODE = 137


def _armed() -> tuple[str, int]:
    name, _, nth = os.environ.get("BACKHAUL_FAILPOINT", "").partition(":")
    return name, int(nth or 1)


_name, _left = _armed()


def reach(name: str) -> None:
    """Marks a step; ends the process here if BACKHAUL_FAILPOINT says so."""
    global _left
    if name != _name:
        return
    _left -= 1
    if _left <= 0:
        os._exit(EXIT_CODE)
