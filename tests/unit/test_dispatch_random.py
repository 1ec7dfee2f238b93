"""Whatever order things happen in: never more than the credits out, and every line runs once."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.records import OpenRetry
from streams.domain.dispatch.dispatcher import Dispatcher
from streams.domain.dispatch.slice import Slice
from tests.support.workers import NOW, Bench, FakeWorker, lines_of, opened

POOLS = ("p", "q")
ROUTES = ((("p",),), (("q",),), (("p",), ("q",)), (("p", "q"),))


class World(Bench):
    """Workers, batches and a dispatcher, moved at random."""

    def __init__(self, random: Random) -> None:
        super().__init__(Dispatcher("c0"))
        self.random = random
        self.unsent: list[Slice] = []
        self.closed: set[str] = set()
        self.paused: set[str] = set()
        self.held: set[str] = set()
        self.totals: dict[str, int] = {}
        self.runs: Counter[tuple[str, int, int]] = Counter()
        self.accepted: set[tuple[str, int]] = set()
        self.attempts: dict[tuple[str, int], int] = {}
        self.workers = [
            FakeWorker(f"w{n}", (2 * n, 2 * n + 1), {p: random.choice([1, 5, 40]) for p in POOLS})
            for n in range(random.choice([1, 2, 3]))
        ]

    def open_one(self) -> None:
        batch_id = f"b{len(self.totals)}"
        total = self.totals[batch_id] = self.random.choice([1, 10, 70, 250])
        routes = self.random.choice(ROUTES)
        self.lane_of[batch_id] = [self.random.randrange(len(routes)) for _ in range(total)]
        if self.random.random() < 0.5:
            self.pin_of[batch_id] = [self.random.randrange(4) for _ in range(total)]
        deadline_ms = NOW + self.random.randint(10**9, 10**10)
        tenant = self.random.choice("abc")
        self.dispatcher.open(
            opened(batch_id, total, tenant=tenant, routes=routes, deadline_ms=deadline_ms)
        )

    def close_one(self) -> None:
        if self.totals:
            batch_id = self.random.choice(sorted(self.totals))
            self.closed.add(batch_id)
            self.dispatcher.close(batch_id)

    def steer_one(self) -> None:
        if self.totals:
            batch_id = self.random.choice(sorted(self.totals))
            self.steer(batch_id, paused=self.random.random() < 0.5)

    def steer(self, batch_id: str, *, paused: bool) -> None:
        if paused:
            self.paused.add(batch_id)
        else:
            self.paused.discard(batch_id)
        deadline_ms = NOW + self.random.randint(10**9, 10**10)
        priority = self.random.randint(-2, 2)
        self.dispatcher.steer(batch_id, priority, deadline_ms, paused=paused)

    def hold_one(self) -> None:
        if self.totals:
            self.hold(self.random.choice(sorted(self.totals)), held=self.random.random() < 0.5)

    def hold(self, batch_id: str, *, held: bool) -> None:
        if held:
            self.held.add(batch_id)
        else:
            self.held.discard(batch_id)
        self.dispatcher.hold(batch_id, held)

    def choose_some(self) -> None:
        chosen = self.choose()
        assert not {s.batch_id for s in chosen} & (self.paused | self.held)
        self.unsent += chosen

    def send_some(self) -> None:
        self.random.shuffle(self.unsent)
        for _ in range(min(len(self.unsent), self.random.randint(0, 20))):
            slice_ = self.unsent.pop()
            if self.random.random() < 0.1 or slice_.batch_id in self.paused | self.held:
                self.dispatcher.returned(slice_, self.now)
                continue
            for picked in slice_.lines:
                self.runs[slice_.batch_id, picked.at.line, picked.attempt] += 1
            self.send(slice_)

    def read_some(self) -> None:
        self.random.choice(self.workers).read(self.log, self.random.randint(1, 5))

    def finish_some(self) -> None:
        worker = self.random.choice(self.workers)
        for slice_ in self.random.sample(worker.held, self.random.randint(0, len(worker.held))):
            worker.finish(slice_)
            accepted, retries = [], []
            for picked in slice_.lines:
                key = (slice_.batch_id, picked.at.line)
                assert picked.attempt == self.attempts.get(key, 0) + 1
                self.attempts[key] = picked.attempt
                if self.random.random() < 0.2:
                    not_before_ms = self.now + self.random.randint(0, 2000)
                    retries.append(
                        OpenRetry(line=key[1], attempt=picked.attempt, not_before_ms=not_before_ms)
                    )
                else:
                    accepted.append(key[1])
                    self.accepted.add(key)
            self.dispatcher.settle(slice_.batch_id, accepted, retries, self.now)

    def hear_all(self) -> None:
        for worker in self.workers:
            self.hear(worker)

    def move_on(self) -> None:
        self.now += self.random.randint(1, 1500)
        self.hear_all()

    def check(self) -> None:
        for worker in self.workers:
            for pool, credits_ in worker.credits.items():
                unread = [
                    s
                    for p in worker.partitions
                    for s in self.log[p]
                    if s.offset >= worker.next_offset.get(p, 0)
                ] + [s for s in self.unsent if s.partition in worker.partitions]
                waiting = sum(s.size for s in unread if s.pool == pool)
                assert worker.holds(pool) + waiting <= credits_
        assert max(self.runs.values(), default=1) == 1

    def drain(self) -> None:
        """Lets everything finish, without further faults."""
        for _ in range(2000):
            self.move_on()
            self.choose_some()
            while self.unsent:
                self.send_some()
            for worker in self.workers:
                worker.read(self.log)
            self.finish_some()
            self.check()
            if self.is_finished():
                return
        raise AssertionError("it never ended")

    def is_finished(self) -> bool:
        done = Counter(batch_id for batch_id, _ in self.accepted)
        return not any(w.held for w in self.workers) and all(
            done[batch_id] == total
            for batch_id, total in self.totals.items()
            if batch_id not in self.closed
        )


STEPS = ("open_one", "choose_some", "send_some", "read_some", "finish_some", "hear_all", "move_on")


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32),
    st.lists(
        st.sampled_from(STEPS * 3 + ("close_one", "steer_one", "steer_one", "hold_one")),
        min_size=10,
        max_size=80,
    ),
)
def test_credits_are_never_exceeded_and_every_line_is_released_once(
    seed: int, steps: list[str]
) -> None:
    world = World(Random(seed))
    world.open_one()
    for step in steps:
        getattr(world, step)()
        world.check()
    for batch_id in sorted(world.paused):
        world.steer(batch_id, paused=False)
    for batch_id in sorted(world.held):
        world.hold(batch_id, held=False)
    world.drain()
    world.hear_all()
    for batch_id in world.totals:
        world.dispatcher.close(batch_id)
    assert world.dispatcher.load(world.now).pools == ()
    for worker in world.workers:
        for slice_ in worker.done:
            assert {world.lane_of[slice_.batch_id][n] for n in lines_of(slice_)} == {
                slice_.lane.number if slice_.lane else -1
            }
