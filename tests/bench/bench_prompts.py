"""What a stored prompt costs the batch-worker: its lines against the same requests written out.

    python -m tests.bench.bench_prompts [LINES]

A system prompt of 2 KB and a question with two variables. First the requests alone are made, then
the lines go through a whole worker to an upstream that answers at once.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from functools import partial

from schemas.records import ClaimCheck, ReadyLine, ReadyLines
from streams.adapters.object_store_fake import FakeObjectStore
from streams.batch_worker.prompt_line import PromptRequests
from streams.batch_worker.prompts import PromptCache
from streams.batch_worker.request import Request, parse_request
from streams.domain.clock import SystemClock
from streams.domain.prompts.pins import Pin, encode_pins
from streams.domain.upstreams import Lane, Rewrite, Upstream
from tests.bench.bench_worker import LINES, NoRenderer, measure, server, worker

CHAT = "/v1/chat/completions"
_SYSTEM = ("You answer questions about a document, briefly and in its own words. " * 30)[:2048]
_QUESTION = "Document: {{ document }}\n\nQuestion: {{ question }}"
_PLAN = "plan"
_REPEATS = 5
_AS_IT_IS = Rewrite(Upstream(name="u", base_url="http://u/v1", models={}), Lane.BATCH)

PIN = Pin(
    "questions",
    1,
    json.dumps(
        [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _QUESTION}]
    ).encode(),
    json.dumps({"model": "m", "temperature": 0.2, "max_tokens": 300}).encode(),
)


def _variables(number: int) -> dict[str, str]:
    return {"document": f"Document {number}: " + "some words " * 20, "question": "What is it?"}


def _line(number: int, body: dict[str, object]) -> bytes:
    line = {"custom_id": f"r-{number}", "method": "POST", "url": CHAT, "body": body}
    return json.dumps(line).encode()


def prompt_line(number: int) -> bytes:
    """A line that names the prompt."""
    return _line(number, {"prompt_slug": "questions", "variables": _variables(number)})


def inlined_line(number: int) -> bytes:
    """The same request, written out."""
    text = _QUESTION
    for name, value in _variables(number).items():
        text = text.replace("{{ " + name + " }}", value)
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": text}]
    return _line(
        number, {"model": "m", "temperature": 0.2, "max_tokens": 300, "messages": messages}
    )


async def _made(count: int) -> tuple[float, float]:
    """Microseconds to make the request of an inlined line and of a prompt line."""
    store, clock = FakeObjectStore(), SystemClock()
    pins = encode_pins([PIN])
    await store.put(_PLAN, pins)
    requests = PromptRequests(PromptCache(store, clock), NoRenderer(), clock)
    prompts = [ReadyLine(line=n, attempt=1, raw=prompt_line(n), pin=1) for n in range(count)]
    inlined = [inlined_line(n) for n in range(count)]
    ready = ReadyLines(
        batch_id="batch_1",
        tenant="t",
        at_ms=0,
        endpoint=CHAT,
        pool="u",
        deadline_ms=1 << 50,
        created_at_ms=0,
        pins=ClaimCheck(key=_PLAN, offset=0, length=len(pins)),
        lines=(),
    )
    made = await requests.request(ready, prompts[0], prompts[0].raw or b"", _AS_IT_IS)
    written = parse_request(inlined[0], _AS_IT_IS)
    if not isinstance(made, Request) or written is None:
        raise AssertionError("the sample lines are not good lines")
    if json.loads(made.body) != json.loads(written.body):
        raise AssertionError("the two kinds of line ask for different things")
    inlined_s = prompt_s = float("inf")
    for _ in range(_REPEATS):
        began = time.process_time()
        for raw in inlined:
            parse_request(raw, _AS_IT_IS)
        inlined_s = min(inlined_s, time.process_time() - began)
        began = time.process_time()
        for item in prompts:
            await requests.request(ready, item, item.raw or b"", _AS_IT_IS)
        prompt_s = min(prompt_s, time.process_time() - began)
    return inlined_s / count * 1e6, prompt_s / count * 1e6


def main(count: int = LINES) -> dict[str, float]:
    """Prints and returns the figures; `added` is the part of a line's CPU that rendering adds."""
    inlined_us, prompt_us = asyncio.run(_made(count))
    inlined, prompts = (list(map(make, range(count))) for make in (inlined_line, prompt_line))
    with server() as url:
        measure(worker, url, inlined[:2000])
        runs = [
            (measure(worker, url, inlined), measure(partial(worker, pin=PIN), url, prompts))
            for _ in range(3)
        ]
    inlined_ms, prompt_ms = (min(times) for times in zip(*runs, strict=True))
    figures = {
        "inlined_us": inlined_us,
        "prompt_us": prompt_us,
        "worker_inlined_ms": inlined_ms,
        "worker_prompt_ms": prompt_ms,
        "added": (prompt_us - inlined_us) / 1000 / inlined_ms,
    }
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))
    return figures


if __name__ == "__main__":
    numbers = [int(a) for a in sys.argv[1:] if a.isdigit()]
    main(numbers[0] if numbers else LINES)
