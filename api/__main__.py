"""`python -m api`: the gateway process; api.process says how it ends."""

from __future__ import annotations

import sys

from api.app import serve
from api.process import run_process

if __name__ == "__main__":
    sys.exit(run_process("gateway", serve))
