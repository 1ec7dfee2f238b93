"""First steps of a template process: it takes its own liberties away, then loads the rest.

    python -I -S boot.py '{"module": …, "path": […], "memory_bytes": …, …}'

A script of the standard library alone: with -S nothing is on the import path but that, so that
the limits hold before any other code is read.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

#: Enough to import modules; the child takes it down to its three pipes when it has them all.
_FILES = 16


def main(argument: str) -> None:
    """Confines this process as the JSON object says, then runs its module's `run` with it."""
    settings: dict[str, Any] = json.loads(argument)
    confine(int(settings["memory_bytes"]))
    sys.path.extend(settings["path"])
    importlib.import_module(settings["module"]).run(settings)


def confine(memory_bytes: int) -> None:
    """Limits memory to so much above what is in use now; no files, processes or core dumps."""
    os.umask(0o077)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, 0)
    limit(resource.RLIMIT_NPROC, 0)
    limit(resource.RLIMIT_NOFILE, _FILES)
    limit(resource.RLIMIT_AS, _address_space() + memory_bytes)


def limit(what: int, most: int) -> None:
    """Lowers a limit for good. Where the system knows no such limit, the parent's deadline does."""
    hard = resource.getrlimit(what)[1]
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(what, (most, most))


def _address_space() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    except OSError:
        # Not Linux: what an interpreter takes there is not known, so there is room for it.
        return 1 << 30
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main(sys.argv[-1])
