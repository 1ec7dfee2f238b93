"""`python -m api.bridge`: the bridge process; api.process says how it ends."""

from __future__ import annotations

import sys

from api.bridge.app import serve
from api.process import run_process

if __name__ == "__main__":
    sys.exit(run_process("bridge", serve))
