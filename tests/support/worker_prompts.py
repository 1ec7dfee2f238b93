"""Plans with pinned prompts, and lines that use them, for the batch-worker's tests."""

from __future__ import annotations

import json
from typing import Any

from schemas.records import ClaimCheck, ReadyLine
from streams.domain.plan import PlanBuilder, pins_range
from streams.domain.prompts.pins import Pin, encode_pins
from tests.support.worker_bench import Bench, until

PLAN = "batches/b1/plan/1"
SYSTEM = {"role": "system", "content": "You are terse."}


def pin(*messages: dict[str, Any], slug: str = "summarize", **config: Any) -> Pin:
    """A pinned version."""
    return Pin(slug, 1, json.dumps(messages).encode(), json.dumps(config).encode())


def user(text: str) -> dict[str, str]:
    """A user's message."""
    return {"role": "user", "content": text}


PLAIN = pin(SYSTEM, user("Sum up: {{text}}"), model="small", temperature=0.5)


async def planned(bench: Bench, *pins: Pin, key: str = PLAN) -> ClaimCheck:
    """A plan with these pins in the store, and where they lie in it."""
    builder = PlanBuilder()
    builder.add(0, 10, 0, 1)
    plan = builder.build(encode_pins(pins))
    await bench.store.put(key, plan)
    offset, length = pins_range(1, len(plan))
    return ClaimCheck(key=key, offset=offset, length=length)


def ask(number: int = 0, pin_number: int = 1, attempt: int = 1, **body: Any) -> ReadyLine:
    """A line that names a prompt."""
    body = {"prompt_slug": "summarize", **body}
    return ReadyLine(line=number, attempt=attempt, raw=prompt_raw(number, body), pin=pin_number)


def prompt_raw(number: int, body: dict[str, Any]) -> bytes:
    """A line of an input file with this body."""
    return json.dumps({"custom_id": f"c{number}", "method": "POST", "body": body}).encode()


async def ran(bench: Bench, *items: ReadyLine, **how: Any) -> None:
    """Takes a slice and waits until it is finished."""
    bench.take(*items, **how)
    await until(lambda: bench.finished)
