"""The meter counts what has come together in one go, and each line once all the same."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from schemas.metrics import USAGE_LINES, Metrics
from schemas.partitions import partition_for
from schemas.records import BillingCommandKind, Usage, UsageRecorded
from streams.domain.billing.meter import ledger as ledgers
from streams.domain.billing.meter.ledger import UsageLedger, metered_of
from streams.kafka.role import Consumed
from streams.meter.counting import Counting
from tests.support.controller_parts import FakeConsumer, consumed
from tests.support.meter_world import PARTITIONS, World, usage


class Meter:
    """A Counting on a world's books, and what it did."""

    def __init__(self) -> None:
        self.world, self.metrics = World(), Metrics()
        self.consumer = FakeConsumer([])
        self.rejected: list[int] = []
        self.counting = Counting(
            *(self.world.books, self.world.desk, self.world, self._reject),
            *(self.world.clock, self.metrics),
        )

    async def _reject(self, consumed: Consumed, _error: str) -> None:
        self.rejected.append(consumed.offset)

    def came(self, record: object, offset: int, *, astray: bool = False) -> Consumed:
        """A record of the log, in its tenant's partition or astray."""
        partition = partition_for(record.tenant, PARTITIONS)  # type: ignore[attr-defined]
        where = (partition + astray) % PARTITIONS
        return consumed(record, offset, self.consumer, partition=where, key=b"k")

    @property
    def written(self) -> int:
        """Chunk rows that were written."""
        return len(self.world.tables["chunks"].unflushed)

    def lines(self, flag: str = "ok") -> float:
        """The metric of counted lines."""
        found: float = self.metrics.counter(USAGE_LINES).labels(flag)._value.get()
        return found


async def test_what_came_together_is_written_once_for_each_chunk() -> None:
    made = Meter()
    records = [usage("ada", f"batch_{n % 2}", [n // 2], n) for n in range(100)]
    records += records[:7]
    await made.counting.step([made.came(record, at) for at, record in enumerate(records)])
    assert (made.written, made.lines()) == (2, 100)
    assert made.consumer.acked == list(range(107))
    tab = made.world.books.tabs["ada", "batch_1"]
    assert (sum(tab.used.values()), tab.last_at_ms) == (sum(120 + n + n % 7 for n in range(50)), 99)


async def test_what_was_revoked_meanwhile_is_neither_counted_nor_acked() -> None:
    made = Meter()
    made.consumer.live = False
    await made.counting.step([made.came(usage("ada", "batch_1", [1], 0), 1)])
    assert (made.written, made.consumer.acked) == (0, [])


async def test_what_is_in_another_partition_than_its_tenant_s_is_set_aside() -> None:
    made = Meter()
    await made.counting.step(
        [
            made.came(usage("ada", "batch_1", [1], 0), 1, astray=True),
            made.came(usage("ada", "batch_1", [2], 0), 2),
        ]
    )
    assert (made.rejected, made.lines(), made.consumer.acked) == ([1], 1, [2])


async def test_commands_among_the_usage_are_obeyed() -> None:
    made = Meter()
    command_id = made.world.order("nothing", BillingCommandKind.CANCEL)
    (command,) = made.world.commands
    first, last = usage("ada", "batch_1", [1], 0), usage("ada", "batch_1", [2], 0)
    came = [made.came(record, at) for at, record in enumerate((first, command, last))]
    await made.counting.step(came)
    assert sorted(made.consumer.acked) == [0, 1, 2]
    assert (made.lines(), set(made.world.decisions)) == (2, {command_id})


_Copies = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(["m", "n"]), st.lists(st.integers(0, 600))),
    max_size=12,
)


def _folded(records: Iterable[tuple[UsageRecorded, int]]) -> dict[tuple[str, int], UsageLedger]:
    found: dict[tuple[str, int], UsageLedger] = {}
    for record, offset in records:
        for chunk, lines in ledgers.by_chunk(record.lines).items():
            key = (record.batch_id, chunk)
            before = found.get(key) or UsageLedger(metered_of(record), chunk)
            counted = ledgers.accept(before, record, lines, offset)
            found[key] = before if counted is None else counted.ledger
    return found


def _usage(batch: str, model: str, lines: list[int], tokens: int, at_ms: int) -> UsageRecorded:
    used = Usage(input_tokens=1 << tokens)
    return usage("ada", batch, lines, at_ms, model=model, created_at_ms=0, of=lambda _: used)


@given(_Copies, st.integers(0, 2**32))
def test_merged_usage_is_the_same_usage_of_each_copy_the_first(
    copies: list[tuple[str, str, list[int]]], seed: int
) -> None:
    # Copies of a line say the same in truth; here they don't, to see which one counted.
    rng = random.Random(seed)
    records = [
        (_usage(batch, model, lines, n, rng.randrange(9)), n)
        for n, (batch, model, lines) in enumerate(copies)
    ]
    merged = ledgers.merged(records)
    one_by_one, together = _folded(records), _folded(merged)
    assert one_by_one.keys() == together.keys()
    for key, ledger in one_by_one.items():
        assert (together[key].sums, together[key].accepted) == (ledger.sums, ledger.accepted)
        assert together[key].watermark >= ledger.watermark
        assert together[key].last_at_ms >= ledger.last_at_ms
    runs = Counter[str]()
    before: dict[str, str] = {}
    for batch, model, _ in copies:
        runs[batch] += before.get(batch) != model
        before[batch] = model
    assert len(merged) == runs.total()
