"""What a budget costs a controller: CPU for each step in which lines of a batch come in.

    python -m tests.bench.bench_budgets

The tenant has one running batch or many that have not begun, and what is left of its budget is far
more than they will cost, or sinks below the estimate of one of them at each step.
"""

from __future__ import annotations

import time

from streams.domain.billing.budgets.holds import BudgetHolds
from tests.support.spending import BOOK, NOON, snapshot, tenant

_STEPS = 2000
#: How many times more a step may cost with the most batches than with one.
LIMIT = 2.0


def _measure(batches: int, *, sinks: bool) -> float:
    """Milliseconds of CPU for a step."""
    budgets = BudgetHolds(lambda: BOOK)
    budgets.hear_tenant(tenant(10 * _STEPS + batches))
    for number in range(batches):
        estimate = batches + 10 * number if sinks else 0
        budgets.hear_batch(snapshot(f"waits {number}", estimated_cost_micros=estimate))
    budgets.settle(NOON)
    steps = [
        snapshot("runs", 10 * step, completed=1, revision=step) for step in range(1, _STEPS + 1)
    ]
    began = time.process_time()
    for step in steps:
        budgets.hear_batch(step)
    return (time.process_time() - began) * 1000 / _STEPS


def main() -> None:
    """Prints the figures."""
    for sinks in (False, True):
        alone_ms = _measure(1, sinks=sinks)
        for batches in (1000, 20_000):
            many_ms = _measure(batches, sinks=sinks)
            ratio = many_ms / alone_ms
            verdict = f", above the {LIMIT} that it may be" if ratio > LIMIT else ""
            print(
                f"budgets, {batches} batches{', one held at each step' if sinks else ''}: "
                f"{many_ms:.4f} ms CPU a step, {ratio:.2f} times that of one batch{verdict}"
            )


if __name__ == "__main__":
    main()
