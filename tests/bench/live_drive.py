"""Plays a trace of real-time calls over HTTP, streamed, and keeps every sample."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.bench.yield_traces import Arrival

_CHARS_PER_TOKEN = 4
_CALL_S = 120.0


@dataclass(slots=True)
class LiveSamples:
    """Seconds of the engine's time: to the first token, and between arrivals of tokens after it.

    first_sent_s, last_end_s: on the monotonic clock. late_s: how late the driver was, at most.
    """

    ttfts: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    errors: int = 0
    first_sent_s: float = 0.0
    last_end_s: float = 0.0
    late_s: float = 0.0


def chat_body(prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
    """A request of these lengths, as the simulator counts them."""
    return {
        "model": "sim",
        "messages": [{"role": "user", "content": "x" * (_CHARS_PER_TOKEN * prompt_tokens)}],
        "max_tokens": output_tokens,
    }


async def drive(
    url: str, key: str, arrivals: Sequence[Arrival], duration_s: float, speed: float
) -> LiveSamples:
    """Asks at the trace's moments, stretched by 1 / speed; ends with the last answer."""
    samples = LiveSamples()
    headers = {"Authorization": f"Bearer {key}"}
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=_CALL_S)
    async with aiohttp.ClientSession(
        connector=connector, headers=headers, timeout=timeout
    ) as session:
        began = samples.first_sent_s = time.perf_counter()
        async with asyncio.TaskGroup() as calls:
            for arrival in arrivals:
                due = began + arrival.at_s / speed
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                samples.late_s = max(samples.late_s, time.perf_counter() - due)
                calls.create_task(_call(session, url, arrival, samples, speed))
            await asyncio.sleep(max(0.0, began + duration_s / speed - time.perf_counter()))
    return samples


async def _call(
    session: aiohttp.ClientSession, url: str, arrival: Arrival, samples: LiveSamples, speed: float
) -> None:
    body = chat_body(arrival.prompt_tokens, arrival.output_tokens) | {"stream": True}
    last = time.perf_counter()
    tail, first = b"", True
    try:
        async with session.post(f"{url}/chat/completions", json=body) as answer:
            answer.raise_for_status()
            async for chunk in answer.content.iter_any():
                now = time.perf_counter()
                (samples.ttfts if first else samples.gaps).append((now - last) * speed)
                first, last = False, now
                tail = (tail + chunk)[-32:]
    except (aiohttp.ClientError, TimeoutError):
        samples.errors += 1
        return
    samples.errors += b"[DONE]" not in tail
    samples.last_end_s = max(samples.last_end_s, time.perf_counter())
