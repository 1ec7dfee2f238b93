"""`make bench`: every figure in one run, as ratios where a machine's speed would matter.

python -m tests.bench [--lines N] [--json] [--only intake|pipeline]
"""

from __future__ import annotations

import argparse
import json
import sys

from tests.bench import bench_intake
from tests.bench.pipeline import measure_pipeline


def main() -> int:
    """Runs the benches and prints their figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--lines", type=int, default=20_000, help="lines of the pipeline's batch")
    parser.add_argument("--json", action="store_true", help="the pipeline's figures as JSON")
    parser.add_argument("--only", choices=("intake", "pipeline"), help="one bench alone")
    options = parser.parse_args()
    if options.only != "pipeline":
        bench_intake.main()
    if options.only != "intake":
        figures = measure_pipeline(options.lines)
        print(json.dumps(figures.as_dict(), indent=2) if options.json else figures.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
