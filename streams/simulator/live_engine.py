"""The engine's model behind the live server: its steps take real time, its tokens come as they end.

    call ─► submit ─► Engine ─► a timer for the step's end ─► advance ─► wakes whose tokens came
                                      ▲                          │
                                      └────── the next step ◄────┘

Each step is timed from the planned end of the one before, so a server that is late catches up and
doesn't drift. Streams are woken at each step that brings them a token, whole answers at their end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping

from streams.simulator.behaviour import Door, RefusedError
from streams.simulator.call import BadRequestError, Call
from streams.simulator.conduct import Conduct, EngineConduct
from streams.simulator.engine import Engine, EngineRequest, EngineSpec, Lane
from streams.simulator.engine_counts import EngineCounts


class _Watcher:
    """A call that waits for its tokens."""

    __slots__ = ("request", "streams", "woken")

    def __init__(self, request: EngineRequest, *, streams: bool) -> None:
        self.request = request
        self.streams = streams
        self.woken = asyncio.Event()


class EngineBehaviour:
    """One live engine. See Behaviour."""

    def __init__(
        self,
        conduct: Conduct,
        options: EngineConduct,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts = EngineCounts()
        self._conduct = conduct
        self._door = Door(conduct)
        self._spec = spec_of(options)
        self._engine = Engine(self._spec)
        self._speed = options.speed
        self._now_s = now_s
        self._watchers: dict[EngineRequest, _Watcher] = {}
        self._timer: asyncio.Handle | None = None

    @property
    def instant(self) -> bool:
        """Nothing is: everything takes a step at least."""
        return False

    async def tokens(self, call: Call) -> AsyncGenerator[int, None]:
        """See Behaviour. A caller that leaves gives its slot and memory back at once."""
        await self._door.enter()
        watcher = self._submit(call)
        request, given = watcher.request, 0
        try:
            while request.finished_at_s is None:
                await watcher.woken.wait()
                watcher.woken.clear()
                ready = self._ready(request, call.completion_tokens)
                if ready > given:
                    yield ready - given
                    given = ready
        finally:
            del self._watchers[request]
            self._engine.abort(request)
        if call.completion_tokens > given:
            yield call.completion_tokens - given

    def gauges(self) -> Mapping[str, float]:
        """See Behaviour; also how full the KV cache is, 1 is all of it."""
        engine = self._engine
        return {
            "running": engine.running,
            "waiting": engine.waiting,
            "kv_cache_usage": engine.kv_cache_usage,
        }

    def retire(self) -> None:
        """See Behaviour."""
        self._door.retire()

    def _submit(self, call: Call) -> _Watcher:
        if call.prompt_tokens + call.completion_tokens > self._spec.kv_cache_tokens:
            limit = self._spec.kv_cache_tokens
            raise BadRequestError(f"This model's maximum context length is {limit} tokens.")
        if self._engine.waiting >= self._conduct.queue:
            raise RefusedError("Too many requests wait.", self._conduct.retry_after_s)
        now_s = self._engine_s()
        self._step(now_s)
        request = EngineRequest(
            # The model only counts the two apart; here whoever streams stands for real-time.
            lane=Lane.REALTIME if call.stream else Lane.BATCH,
            prompt_tokens=call.prompt_tokens,
            output_tokens=max(1, call.completion_tokens),
            priority=call.priority,
        )
        watcher = self._watchers[request] = _Watcher(request, streams=call.stream)
        self.counts.prompt_tokens += call.prompt_tokens
        self._engine.submit(request, now_s)
        self._arm()
        return watcher

    def _ready(self, request: EngineRequest, most: int) -> int:
        """Tokens that the caller may have: the hidden ones come with the first visible one."""
        if request.finished_at_s is not None:
            return most
        visible = self._engine.visible_tokens(request)
        return min(most, visible + self._spec.hidden_tokens) if visible else 0

    def _engine_s(self) -> float:
        return self._now_s() * self._speed

    def _arm(self) -> None:
        """Sets the timer to the end of the step that runs."""
        at_s = self._engine.next_at_s
        if self._timer is None and at_s is not None:
            pause_s = max(0.0, at_s - self._engine_s()) / self._speed
            self._timer = asyncio.get_running_loop().call_later(pause_s, self._due)

    def _due(self) -> None:
        self._timer = None
        self._step(self._engine_s())
        self._arm()

    def _step(self, now_s: float) -> None:
        """Ends the steps that are due, and wakes those who got something."""
        steps = self._engine.advance(now_s)
        if not steps:
            return
        for step in steps:
            self.counts.add(step)
            for request in step.finished:
                if request in self._watchers:
                    self._watchers[request].woken.set()
        for watcher in self._watchers.values():
            if watcher.streams and watcher.request.first_at_s is not None:
                watcher.woken.set()


def spec_of(options: EngineConduct) -> EngineSpec:
    """The engine that the options describe."""
    return EngineSpec(
        step_s=options.step_s,
        per_decode_s=options.per_decode_s,
        per_prefill_token_s=options.per_prefill_token_s,
        # What HTTP takes, this server takes itself.
        front_s=0.0,
        hidden_tokens=options.hidden_tokens,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        kv_cache_tokens=options.kv_cache_tokens,
        priority=options.priority,
    )
