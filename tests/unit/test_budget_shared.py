"""Two controllers, each with a batch of one tenant, spend of one budget and hear of it late."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from schemas.records import BatchSnapshot, BatchStatus
from streams.domain.billing.budgets.holds import BudgetHolds
from streams.domain.enqueued.tenants import Tenants
from tests.support.spending import BOOK, NOON, snapshot, tenant

BUDGET, LINE, LINES = 200, 7, 60
#: Snapshots of the other that a controller may not have read yet: what comes within a second.
LATE = 3


@dataclass
class Controller:
    """One of them: what it thinks of the tenant, and what has come of its own batch."""

    batch_id: str
    log: list[BatchSnapshot]
    done: int = 0
    read: int = 0

    def __post_init__(self) -> None:
        self.tenants = Tenants(BudgetHolds(lambda: BOOK))
        self.tenants.limits_known = self.tenants.batches_known = True
        self.tenants.hear_limits(tenant(BUDGET))
        self.tell()

    def tell(self) -> None:
        """Puts its batch as it is onto batch.status; it knows that itself at once."""
        status = BatchStatus.COMPLETED if self.done == LINES else BatchStatus.IN_PROGRESS
        told = snapshot(
            self.batch_id,
            LINE * self.done,
            revision=self.done + 1,
            completed=self.done,
            status=status,
        )
        self.log.append(told)
        self.tenants.hear_batch(told)

    def hear(self, behind: int) -> None:
        """Reads batch.status, all but so many records."""
        end = max(self.read, len(self.log) - behind)
        for told in self.log[self.read : end]:
            self.tenants.hear_batch(told)
        self.read = end

    def release(self) -> bool:
        """Releases a line, which comes in at once, unless the batch has to wait."""
        self.tenants.settle(NOON)
        if self.done == LINES or self.tenants.waits("a", self.batch_id):
            return False
        self.done += 1
        self.tell()
        return True


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, LATE)), max_size=150))
def test_together_they_exceed_it_by_no_more_than_what_they_had_not_heard_of_each_other(
    turns: list[tuple[int, int]],
) -> None:
    log: list[BatchSnapshot] = []
    both = (Controller("one", log), Controller("two", log))
    for who, behind in turns:
        both[who].hear(behind)
        both[who].release()
    for _ in range(2 * LINES):
        for controller in both:
            controller.hear(0)
            controller.release()
    spent = LINE * sum(controller.done for controller in both)
    assert BUDGET <= spent <= BUDGET + LINE * (LATE + 1)
    holds = [controller.tenants.budgets.holds() for controller in both]
    assert holds[0] == holds[1]
    assert holds[0].keys() == {"one", "two"}
    assert {hold.spent_micros for hold in holds[0].values()} == {spent}

    for controller in both:
        controller.tenants.hear_limits(tenant(2 * LINE * LINES))
        while controller.release():
            pass
        assert controller.done == LINES
