"""Real-time clients and a look at the gate while processes are killed, for fault injection."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from openai import APIConnectionError, APIError, APITimeoutError

from schemas.records import WorkerLoad
from schemas.topics import CAPACITY
from streams.kafka.reader import TopicReader
from streams.settings import Settings
from tests.acceptance.chaos import Fault, client_of
from tests.support.stack import Simulator, Stack
from tests.support.waiting import deadline_in

#: What a client waits for an answer or an error; far more than anyone takes to notice a death.
CLIENT_TIMEOUT_S = 40.0
#: The floor of an upstream table that doesn't say another.
FLOOR = 2
_BETWEEN_S = 0.05


class Clients:
    """So many clients, each asking again as soon as it has its answer or its error."""

    def __init__(self, stack: Stack, run: str, count: int) -> None:
        self.ends: Counter[str] = Counter()
        self._run = run
        self._stopped = threading.Event()
        ask = self._ask
        self._threads = [
            threading.Thread(target=ask, args=(stack, number)) for number in range(count)
        ]

    def start(self) -> None:
        """They begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """They ask nothing more; returns once each has the end of its last request."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, stack: Stack, number: int) -> None:
        asked = 0
        with client_of(stack).with_options(timeout=CLIENT_TIMEOUT_S) as client:
            while not self._stopped.is_set():
                asked += 1
                try:
                    stream = client.chat.completions.create(
                        model="sim",
                        messages=[{"role": "user", "content": "Tell me of the sea."}],
                        user=f"{self._run}-{number}-{asked}",
                        max_tokens=20,
                        stream=True,
                    )
                    last = [part.choices[0].finish_reason for part in stream if part.choices][-1:]
                    # A stream without an error and without an end would be a lie.
                    end = "answer" if last and last[0] else "cut short"
                except APITimeoutError:
                    end = "hang"
                except APIConnectionError:
                    end = "no connection"
                except APIError:
                    end = "error"
                except Exception as error:  # noqa: BLE001 - the SDK lets httpx's own through
                    end = "no connection" if "httpx" in type(error).__module__ else repr(error)
                self.ends[end] += 1
                time.sleep(_BETWEEN_S)

    def audit(self, simulator: Simulator) -> None:
        """Each had an answer or an error in time, and no request was answered twice."""
        assert set(self.ends) <= {"answer", "error", "no connection"}, self.ends
        assert self.ends["answer"] > 0
        for key, count in simulator.requests()["keys"].items():
            if key.startswith(f"{self._run}-"):
                assert count["ok"] <= 1, f"{key} was answered again"


@dataclass(frozen=True)
class Seen:
    """What a batch-worker said of its first pool."""

    reason: str
    limit: int


class GateWatch:
    """Reads what the batch-workers say of their gates."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopped = threading.Event()
        self.seen: list[Seen] = []

    def wait(self, floor: bool, within_s: float = 60.0) -> None:
        """Until the next word is of a gate that is at its floor for want of a signal, or not."""
        start, deadline = len(self.seen), deadline_in(within_s)
        while not self._said(start, floor):
            assert time.monotonic() < deadline, f"the gate did not say so: {self.seen[-3:]}"
            time.sleep(0.02)

    def at_floor(self) -> bool:
        """Whether the last word is of the floor."""
        return self._said(len(self.seen) - 1, floor=True)

    def _said(self, start: int, floor: bool) -> bool:
        return any(
            (seen.reason == "stale" and seen.limit <= FLOOR)
            if floor
            else (seen.reason != "stale" and seen.limit > FLOOR)
            for seen in self.seen[max(0, start) :]
        )

    @contextmanager
    def running(self) -> Iterator[GateWatch]:
        """Reads meanwhile."""
        thread = threading.Thread(target=lambda: asyncio.run(self._read()))
        thread.start()
        try:
            yield self
        finally:
            self._stopped.set()
            thread.join()

    async def _read(self) -> None:
        reader = TopicReader(self._settings, [CAPACITY])
        await reader.start("end")
        try:
            while not self._stopped.is_set():
                for read in await reader.poll(0.2):
                    if isinstance(read.record, WorkerLoad) and not read.record.stopping:
                        pool = read.record.pools[0]
                        self.seen.append(Seen(pool.reason, pool.limit))
        finally:
            await reader.stop()


def kill_lane_until_missed(gate: GateWatch) -> Fault:
    """kill -9 of the realtime-worker, and of those that come after it, until batch misses it."""

    def inflict(stack: Stack) -> None:
        deadline = deadline_in(60)
        killed = 0
        while not (killed and gate.at_floor()):
            assert time.monotonic() < deadline, f"batch does not miss the lane: {gate.seen[-3:]}"
            with contextlib.suppress(IndexError, ProcessLookupError):
                stack.kill("realtime-worker")
                killed += 1
            time.sleep(0.1)
        gate.wait(floor=False)

    return Fault("kill -9 realtime-worker, until it is missed and back", inflict)
