"""`python -m streams ROLE` runs one role of the pipeline."""

from __future__ import annotations

import importlib
import sys

from pydantic import ValidationError

from streams import log
from streams.settings import Settings

ROLES = (
    *("controller", "file-worker", "batch-worker", "collector"),
    *("realtime-worker", "meter", "webhook-worker"),
)
EXIT_USAGE = 2


def main(arguments: list[str]) -> int:
    """Runs the role named on the command line and returns its exit code."""
    if len(arguments) != 1 or arguments[0] not in ROLES:
        sys.stderr.write(f"usage: python -m streams {{{','.join(ROLES)}}}\n")
        return EXIT_USAGE
    role = arguments[0]
    try:
        settings = Settings()
    except ValidationError as error:
        for problem in error.errors():
            name = "_".join(["BACKHAUL", *(str(part) for part in problem["loc"])]).upper()
            sys.stderr.write(f"{name}: {problem['msg']}\n")
        return EXIT_USAGE
    log.configure(settings, role)
    module = importlib.import_module(f"streams.{role.replace('-', '_')}.app")
    return int(module.main(settings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
