"""Budgets: what counts when, who is held and why, and that the order of news doesn't matter."""

from __future__ import annotations

import gc
import sys
from random import Random
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.records import (
    ApiKeyRecord,
    BatchSnapshot,
    BatchStatus,
    DayUsage,
    ModelUsage,
    TenantRecord,
    Usage,
)
from streams.domain.batch.row import snapshot_of
from streams.domain.billing.budgets.budget import Budget, BudgetPeriod, budget_of
from streams.domain.billing.budgets.holds import BudgetHolds
from streams.domain.billing.budgets.spent import Spent, spent_by_day
from streams.domain.billing.prices.batch_cost import batch_cost
from streams.domain.clock import DAY_MS, day_of
from streams.domain.enqueued.tenants import Tenants
from tests.support.batch_log import Controller, create, entries, outcome, segment, validated
from tests.support.spending import BOOK, NOON, TODAY, at_ms, key, snapshot, tenant


def held(budgets: BudgetHolds, now_ms: int = NOON) -> dict[str, str]:
    """Whose budget holds each batch that is held."""
    budgets.settle(now_ms)
    return {batch_id: hold.scope for batch_id, hold in budgets.holds().items()}


@pytest.mark.parametrize(
    ("period", "first", "end"),
    [
        (BudgetPeriod.DAY, "2026-11-28", "2026-11-29"),
        (BudgetPeriod.MONTH, "2026-11-01", "2026-12-01"),
        (BudgetPeriod.TOTAL, "1970-01-01", None),
    ],
)
def test_periods_begin_at_midnight_utc(period: BudgetPeriod, first: str, end: str | None) -> None:
    for clock in ("00:00:00", "12:00", "23:59:59"):
        now_ms, budget = at_ms(f"2026-11-28T{clock}"), Budget(1, period)
        assert budget.days(now_ms)[0] == day_of(at_ms(first))
        assert day_of(now_ms) in budget.days(now_ms)
        assert end is None or day_of(at_ms(end)) == budget.days(now_ms)[-1] + 1
        assert budget.ends_at_ms(now_ms) == (None if end is None else at_ms(end))


def test_the_month_after_december_is_january() -> None:
    assert Budget(1, BudgetPeriod.MONTH).ends_at_ms(at_ms("2026-12-31T23:00")) == at_ms(
        "2027-01-01"
    )


def test_a_period_of_a_later_version_is_the_strictest_one() -> None:
    assert budget_of(5, "week") == Budget(5, BudgetPeriod.TOTAL)
    assert budget_of(None, "day") is None


usages = st.builds(
    lambda read, cached, wrote, thought: Usage(
        input_tokens=read + cached,
        cached_tokens=cached,
        output_tokens=wrote + thought,
        reasoning_tokens=thought,
    ),
    *[st.integers(0, 10**6)] * 4,
)


@given(st.dictionaries(st.tuples(st.integers(0, 6), st.sampled_from("ab")), usages, min_size=1))
def test_the_days_add_up_to_what_the_batch_costs(used: dict[tuple[int, str], Usage]) -> None:
    whole: dict[str, Usage] = {}
    for (_, model), usage in used.items():
        whole[model] = _plus(whole.get(model, Usage()), usage)
    parts = tuple(ModelUsage(model=model, usage=usage) for model, usage in whole.items())
    batch = snapshot(
        "b",
        model=None,
        usage_by_model=parts,
        usage=_plus(*[*whole.values(), Usage(), Usage()][:2]),
        usage_of_later_days=tuple(
            DayUsage(day=TODAY + day, model=model, usage=usage)
            for (day, model), usage in used.items()
            if day
        ),
    )
    by_day = spent_by_day(BOOK, batch)
    cost = batch_cost(BOOK, batch)
    assert cost is not None
    assert sum(by_day.values()) == cost.billed_micros
    assert all(micros >= 0 for micros in by_day.values())


def _plus(a: Usage, b: Usage) -> Usage:
    return Usage(
        input_tokens=a.input_tokens + b.input_tokens,
        cached_tokens=a.cached_tokens + b.cached_tokens,
        output_tokens=a.output_tokens + b.output_tokens,
        reasoning_tokens=a.reasoning_tokens + b.reasoning_tokens,
    )


def test_lines_that_come_after_midnight_are_spent_on_that_day() -> None:
    controller = Controller()
    made = create()
    later = made.at_ms + DAY_MS
    controller.feed(
        entries(
            [
                made,
                validated(9),
                segment([outcome(1)], at_ms=made.at_ms),
                segment([outcome(2)], at_ms=later),
                segment([outcome(1), outcome(3)], at_ms=later + DAY_MS),
            ]
        )
    )
    assert controller.batch is not None
    shown = snapshot_of(controller.batch)
    first = day_of(made.at_ms)
    assert [(part.day, part.usage) for part in shown.usage_of_later_days] == [
        (first + 1, outcome(2).usage),
        (first + 2, outcome(3).usage),
    ]


_SEGMENTS = st.lists(
    st.tuples(st.sets(st.integers(0, 599), max_size=40), st.integers(0, 3)), max_size=6
)


@given(_SEGMENTS, st.booleans(), st.data())
def test_what_came_on_which_day_is_exact_whatever_is_repeated_or_lost_in_a_crash(
    told: list[tuple[set[int], int]], many: bool, data: st.DataObject
) -> None:
    made = create()
    models = ("a", "b") if many else ("m",)
    events = [
        segment(
            [outcome(line, model=line % len(models)) for line in sorted(lines)],
            at_ms=made.at_ms + day * DAY_MS,
            models=models,
        )
        for lines, day in told
    ]
    log = entries([made, validated(600, models=models), *events])
    cut = data.draw(st.integers(2, len(log)))
    controller = Controller().feed(log[:cut]).restart().feed(log[cut:])
    wanted: dict[tuple[int, str], Usage] = {}
    seen: set[int] = set()
    for lines, day in told:
        for line in lines - seen if day else ():
            at = (day_of(made.at_ms) + day, models[line % 2] if many else "")
            wanted[at] = _plus(wanted.get(at, Usage()), outcome(line).usage)
        seen |= lines
    assert controller.batch is not None
    shown = snapshot_of(controller.batch).usage_of_later_days
    assert {(part.day, part.model): part.usage for part in shown} == wanted


def test_who_has_spent_the_budget_is_held_until_it_is_raised() -> None:
    budgets = BudgetHolds(lambda: BOOK)
    budgets.hear_tenant(tenant(100))
    budgets.hear_batch(snapshot("one", 60))
    budgets.hear_batch(snapshot("two", 39))
    assert held(budgets) == {}
    budgets.hear_batch(snapshot("two", 40, revision=2))
    assert held(budgets) == {"one": "tenant", "two": "tenant"}
    hold = budgets.holds()["one"]
    assert (hold.budget_micros, hold.spent_micros, hold.until_ms) == (100, 100, None)
    budgets.hear_tenant(tenant(101))
    assert held(budgets) == {}
    budgets.hear_tenant(tenant(5))
    assert held(budgets)
    budgets.hear_tenant(tenant(None))
    assert held(budgets) == {}


def test_ended_batches_have_spent_what_they_have_and_are_not_held() -> None:
    budgets = BudgetHolds(lambda: BOOK)
    budgets.hear_tenant(tenant(100))
    budgets.hear_batch(snapshot("old", 100, revision=5, status=BatchStatus.CANCELLED))
    budgets.hear_batch(snapshot("old", 100, revision=4))
    budgets.hear_batch(snapshot("new"))
    assert held(budgets) == {"new": "tenant"}
    assert budgets.holds()["new"].spent_micros == 100


def test_a_key_s_budget_holds_the_batches_that_it_created_only() -> None:
    budgets = BudgetHolds(lambda: BOOK)
    budgets.hear_key(key("k", 50))
    budgets.hear_batch(snapshot("with", 50, key_id="k"))
    budgets.hear_batch(snapshot("other", 70, key_id="l"))
    budgets.hear_batch(snapshot("none", 70))
    budgets.hear_batch(snapshot("theirs", 70, key_id="k", tenant="b"))
    assert held(budgets) == {"with": "key"}
    budgets.hear_key(key("k", None))
    assert held(budgets) == {}
    assert budgets.lets("a", "unheard of"), "nothing is limited any more"


@pytest.mark.parametrize(
    ("period", "goes_on"), [("day", "2026-11-29"), ("month", "2026-12-01"), ("total", None)]
)
def test_a_new_period_lets_a_batch_go_on_and_counts_from_nothing(
    period: str, goes_on: str | None
) -> None:
    budgets = BudgetHolds(lambda: BOOK)
    budgets.hear_tenant(tenant(100, period))
    budgets.hear_batch(snapshot("b", 100))
    assert held(budgets) == {"b": "tenant"}
    begins = at_ms("2030-01-01") if goes_on is None else at_ms(goes_on)
    assert held(budgets, begins - 1) == {"b": "tenant"}
    assert held(budgets, begins) == ({"b": "tenant"} if goes_on is None else {})
    later = DayUsage(day=day_of(begins), model="", usage=Usage(input_tokens=99))
    budgets.hear_batch(snapshot("b", 199, revision=2, usage_of_later_days=(later,)))
    assert held(budgets, begins + 1) == ({"b": "tenant"} if goes_on is None else {})
    later = DayUsage(day=day_of(begins), model="", usage=Usage(input_tokens=100))
    budgets.hear_batch(snapshot("b", 200, revision=3, usage_of_later_days=(later,)))
    assert held(budgets, begins + 2) == {"b": "tenant"}


def test_without_a_price_book_nothing_is_held() -> None:
    budgets = BudgetHolds()
    budgets.hear_tenant(tenant(0))
    budgets.hear_batch(snapshot("b", 10))
    assert held(budgets) == {}
    assert budgets.lets("a", "b")


def _world(limit: int | None = None) -> Tenants:
    tenants = Tenants(BudgetHolds(lambda: BOOK))
    tenants.limits_known = tenants.batches_known = True
    tenants.hear_limits(
        TenantRecord(tenant="a", at_ms=0, max_enqueued_lines=limit, budget_micros=1000)
    )
    return tenants


def test_a_batch_that_no_controller_has_told_of_yet_waits_where_there_is_a_budget() -> None:
    tenants = _world()
    tenants.settle(NOON)
    assert tenants.waits("a", "b")
    tenants.hear_batch(snapshot("b"))
    assert tenants.settle(NOON), "whoever asked before must ask again"
    assert not tenants.waits("a", "b")
    assert not tenants.settle(NOON)
    tenants.batches_known = False
    assert tenants.waits("a", "b")
    assert not tenants.waits("c", "d")


def test_what_has_no_money_takes_up_no_room() -> None:
    tenants = _world(limit=10)
    tenants.hear_key(key("k", 5))
    tenants.hear_batch(snapshot("first", 5, key_id="k"))
    tenants.hear_batch(snapshot("second", 5, created_at_ms=NOON + 1))
    tenants.settle(NOON)
    assert tenants.waits("a", "first")
    assert not tenants.waits("a", "second")
    assert tenants.positions(NOON) == {"second": 0}
    tenants.hear_key(key("k", 6))
    assert tenants.settle(NOON)
    assert not tenants.waits("a", "first")
    assert tenants.waits("a", "second"), "the first one has its room again"


@given(st.integers(0, 2**32))
def test_snapshots_in_any_order_and_number_come_to_the_same_sums(seed: int) -> None:
    random = Random(seed)
    told = []
    for number in range(6):
        ends = random.random() < 0.5
        for revision in range(4):
            later = DayUsage(
                day=TODAY + 1, model="", usage=Usage(input_tokens=random.randint(0, 10))
            )
            over = ends and revision == 3
            told.append(
                snapshot(
                    f"b{number}",
                    20 + 10 * revision,
                    key_id=f"k{number % 2}",
                    revision=revision,
                    usage_of_later_days=(later,) if revision else (),
                    status=BatchStatus.COMPLETED if over else BatchStatus.IN_PROGRESS,
                )
            )
    sums = []
    for _ in range(2):
        shuffled = told * 2
        random.shuffle(shuffled)
        spent = Spent()
        for one in shuffled:
            spent.hear(BOOK, one)
        of = spent.tenant("a")
        sums.append(
            (
                [
                    of.within(range(day, TODAY + 2), key_id)
                    for day in (0, TODAY + 1)
                    for key_id in (None, "k0", "k1")
                ],
                of.running.keys(),
            )
        )
    assert sums[0] == sums[1]
    assert sums[0][0][0] == sum(
        sum(spent_by_day(BOOK, one).values()) for one in told if one.revision == 3
    )


def test_a_batch_too_large_for_what_is_left_waits_until_it_has_begun() -> None:
    budgets = BudgetHolds(lambda: BOOK)
    budgets.hear_tenant(tenant(100))
    budgets.hear_batch(snapshot("runs", 40, completed=1, estimated_cost_micros=400))
    budgets.hear_batch(snapshot("fits", estimated_cost_micros=60))
    budgets.hear_batch(snapshot("large", estimated_cost_micros=61))
    budgets.hear_batch(snapshot("unknown", estimated_cost_micros=None))
    assert held(budgets) == {"large": "tenant"}
    hold = budgets.holds()["large"]
    assert (hold.reason, hold.estimate_micros) == ("budget_too_small", 61)
    budgets.hear_key(key("k", 10))
    budgets.hear_batch(snapshot("key's", key_id="k", estimated_cost_micros=11))
    assert held(budgets) == {"large": "tenant", "key's": "key"}
    budgets.hear_tenant(tenant(101))
    budgets.hear_key(key("k", 11))
    assert held(budgets) == {}
    budgets.hear_batch(snapshot("large", 50, completed=1, revision=2, estimated_cost_micros=61))
    assert held(budgets) == {"fits": "tenant"}


@given(st.integers(0, 2**32))
def test_a_budget_counts_what_was_spent_before_it_was_set_whenever_that_was(seed: int) -> None:
    random = Random(seed)
    told = [
        snapshot(
            f"b{number}",
            10 * (revision + 1),
            revision=revision,
            status=BatchStatus.COMPLETED if number < 3 == revision else BatchStatus.IN_PROGRESS,
        )
        for number in range(6)
        for revision in range(4)
    ]
    random.shuffle(told)
    budgets = BudgetHolds(lambda: BOOK)
    news: list[BatchSnapshot | TenantRecord] = list(told)
    for micros in (1000, None, 240):
        news.insert(random.randint(0, len(news)), tenant(micros))
    for one in [*news, tenant(240)]:
        if isinstance(one, TenantRecord):
            budgets.hear_tenant(one)
        else:
            budgets.hear_batch(one)
        if random.random() < 0.3:
            budgets.settle(NOON)
    assert held(budgets) == dict.fromkeys(("b3", "b4", "b5"), "tenant")
    assert {hold.spent_micros for hold in budgets.holds().values()} == {240}


_KEYS = (None, "k0", "k1")


def _told_by(number: int, random: Random) -> list[BatchSnapshot]:
    """All that a batch ever tells."""
    key_id, estimate = random.choice(_KEYS), random.choice([None, random.randint(0, 60)])
    spent = later = 0
    told = []
    for revision in range(random.randint(1, 4)):
        begun = revision > 0
        spent += random.randint(0, 30) if begun else 0
        later += random.randint(0, spent - later)
        day = DayUsage(day=TODAY + 3, model="", usage=Usage(input_tokens=later))
        ends = revision == 3 and random.random() < 0.5
        told.append(
            snapshot(
                f"b{number}",
                spent,
                key_id=key_id,
                revision=revision,
                completed=int(begun),
                estimated_cost_micros=estimate,
                usage_of_later_days=(day,) if later else (),
                status=BatchStatus.COMPLETED if ends else BatchStatus.IN_PROGRESS,
            )
        )
    return told


class _Plainly:
    """The same, computed from the beginning each time."""

    def __init__(self) -> None:
        self.batches: dict[str, BatchSnapshot] = {}
        self.budgets: dict[str | None, Budget] = {}

    def hear(self, one: BatchSnapshot) -> None:
        known = self.batches.get(one.batch_id)
        if known is None or one.revision >= known.revision:
            self.batches[one.batch_id] = one

    def limit(self, key_id: str | None, budget: Budget | None) -> None:
        self.budgets.pop(key_id, None)
        if budget is not None:
            self.budgets[key_id] = budget

    def running(self) -> dict[str, BatchSnapshot]:
        over = BatchStatus.COMPLETED
        return {i: batch for i, batch in self.batches.items() if batch.status is not over}

    def holds(self, now_ms: int) -> dict[str, tuple[str, str, int]]:
        found = {}
        for batch in self.running().values():
            for key_id in (None, batch.key_id) if batch.key_id else (None,):
                reason, spent = self._judged(batch, key_id, now_ms)
                if reason:
                    scope = "tenant" if key_id is None else "key"
                    found[batch.batch_id] = (reason, scope, spent)
                    break
        return found

    def _judged(self, batch: BatchSnapshot, key_id: str | None, now_ms: int) -> tuple[str, int]:
        budget = self.budgets.get(key_id)
        if budget is None:
            return "", 0
        spent = sum(
            micros
            for other in self.batches.values()
            if key_id is None or other.key_id == key_id
            for day, micros in spent_by_day(BOOK, other).items()
            if day in budget.days(now_ms)
        )
        estimate = batch.estimated_cost_micros
        if spent >= budget.micros:
            return "budget_reached", spent
        too_large = estimate is not None and spent + estimate > budget.micros
        return ("budget_too_small" if too_large and not batch.completed else ""), spent


@given(st.integers(0, 2**32), st.booleans())
def test_what_is_kept_up_step_by_step_is_what_follows_from_everything_at_once(
    seed: int, at_each_step: bool
) -> None:
    random = Random(seed)
    told = [one for number in range(8) for one in _told_by(number, random)] * 2
    random.shuffle(told)
    budgets, plainly, now_ms = BudgetHolds(lambda: BOOK), _Plainly(), NOON
    #: What a controller believes that asks only about what it is told has moved.
    goes: dict[str, bool] = {}
    for number, one in enumerate(told):
        new_budget = number == 0 or random.random() < 0.05
        if new_budget:
            key_id, micros = random.choice(_KEYS), random.choice([None, *range(10, 250, 10)])
            record = _limit(budgets, key_id, micros, random.choice(["day", "month", "total"]))
            plainly.limit(key_id, budget_of(record.budget_micros, record.budget_period))
        now_ms += DAY_MS if random.random() < 0.05 else 1000
        moved = set(budgets.hear_batch(one))
        plainly.hear(one)
        settles = new_budget or random.random() < 0.5
        if settles:
            asked = set(budgets.settle(now_ms).get("a", ()))
            moved = moved | asked if at_each_step else asked
            holds = {i: (h.reason, h.scope, h.spent_micros) for i, h in budgets.holds().items()}
            assert holds == plainly.holds(now_ms)
        elif not at_each_step:
            continue
        for batch_id in plainly.batches if new_budget else moved:
            goes[batch_id] = budgets.lets("a", batch_id)
        assert budgets.applies("a") is bool(plainly.budgets)
        for batch_id in plainly.running() if plainly.budgets else ():
            assert goes.get(batch_id, False) == budgets.lets("a", batch_id)


def _limit(
    budgets: BudgetHolds, key_id: str | None, micros: int | None, period: str
) -> TenantRecord | ApiKeyRecord:
    if key_id is None:
        of_tenant = tenant(micros, period)
        budgets.hear_tenant(of_tenant)
        return of_tenant
    of_key = key(key_id, micros, period)
    budgets.hear_key(of_key)
    return of_key


@given(st.integers(0, 2**32))
def test_who_asks_only_about_batches_that_moved_knows_of_all_whether_they_wait(seed: int) -> None:
    random = Random(seed)
    told = [one for number in range(8) for one in _told_by(number, random)]
    random.shuffle(told)
    tenants, now_ms = _world(), NOON
    waits: dict[str, bool] = {}
    known: set[str] = set()
    over: set[str] = set()
    for one in told:
        if random.random() < 0.3:
            # A controller begins with a batch, of which its snapshot may have told or not.
            waits.setdefault(one.batch_id, tenants.waits("a", one.batch_id))
        micros, lines = (random.choice([None, random.randint(1, 200)]) for _ in range(2))
        if random.random() < 0.2:
            limits = TenantRecord(
                tenant="a", at_ms=0, budget_micros=micros, max_enqueued_lines=lines
            )
            tenants.hear_limits(limits)
        elif random.random() < 0.2:
            tenants.hear_key(key("k0", micros, "day"))
        tenants.hear_batch(one)
        known.add(one.batch_id)
        if one.status is BatchStatus.COMPLETED:
            over.add(one.batch_id)
        now_ms += random.choice([1000, 1000, 1000, DAY_MS])
        if random.random() < 0.5:
            continue
        for batch_id in tenants.settle(now_ms):
            if batch_id in waits:
                waits[batch_id] = tenants.waits("a", batch_id)
        # It is told about a batch that was not known here as soon as it is.
        for batch_id in waits.keys() & known - over:
            assert waits[batch_id] == tenants.waits("a", batch_id)


def test_a_step_looks_at_no_more_batches_however_many_the_tenant_has() -> None:
    def calls(batches: int) -> int:
        budgets = BudgetHolds(lambda: BOOK)
        budgets.hear_tenant(tenant(10_000))
        for number in range(batches):
            budgets.hear_batch(snapshot(f"b{number}", estimated_cost_micros=number))
        budgets.settle(NOON)
        budgets.hear_batch(snapshot("runs", 1, completed=1))
        step = snapshot("runs", 2, completed=1, revision=2)
        found = 0

        def counted(_frame: FrameType, _event: str, _arg: object) -> None:
            nonlocal found
            found += 1

        # Finalizers of what other tests left would be counted, too.
        gc.disable()
        sys.setprofile(counted)
        try:
            budgets.hear_batch(step)
        finally:
            sys.setprofile(None)
            gc.enable()
        return found

    assert calls(1000) < 2 * calls(1)
