"""`make bench`: every figure in one run, as ratios where a machine's speed would matter.

python -m tests.bench [--lines N] [--json] [--only intake|pipeline|prompts|lane|meter|budgets]
"""

from __future__ import annotations

import argparse
import json
import sys

from tests.bench import bench_budgets, bench_intake, bench_meter, bench_prompts
from tests.bench.bench_lane import measure_lane
from tests.bench.pipeline import measure_pipeline
from tests.bench.prompt_pipeline import measure_prompts

_BENCHES = ("intake", "pipeline", "prompts", "lane", "meter", "budgets")


def main() -> int:
    """Runs the benches and prints their figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--lines", type=int, default=20_000, help="lines of each batch")
    parser.add_argument("--json", action="store_true", help="the batches' figures as JSON")
    parser.add_argument("--only", choices=_BENCHES, help="one bench alone")
    options = parser.parse_args()
    wanted = (options.only,) if options.only else _BENCHES
    if "intake" in wanted:
        bench_intake.main()
    if "pipeline" in wanted:
        figures = measure_pipeline(options.lines)
        print(json.dumps(figures.as_dict(), indent=2) if options.json else figures.table())
    if "prompts" in wanted:
        bench_prompts.main(options.lines)
        prompts = measure_prompts(options.lines // 4)
        print(json.dumps(prompts.as_dict(), indent=2) if options.json else prompts.table())
    if "lane" in wanted:
        lane = measure_lane()
        print(json.dumps(lane.as_dict(), indent=2) if options.json else lane.table())
    if "meter" in wanted:
        bench_meter.main()
    if "budgets" in wanted:
        bench_budgets.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
