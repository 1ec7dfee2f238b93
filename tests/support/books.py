"""Batches that have ended, with everything that is counted of them: output file, snapshot, usage,
what a real meter made of it, and what a fake of Stripe was sent."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import msgspec

from api.billing.reconcile.run import Places, Report, reconcile
from api.billing.reconcile.scope import Scope
from api.log_fake import FakeLog
from schemas.records import (
    BatchSnapshot,
    BatchStatus,
    LineUsage,
    MeterSend,
    ModelUsage,
    ObjectRef,
    Usage,
    UsageRecorded,
)
from schemas.topics import BATCH_STATUS, METER_SEND, USAGE_RECORDED
from streams.adapters.object_store_fake import FakeObjectStore
from streams.domain.billing.tokens import add
from streams.domain.outcome import render
from tests.support.meter_world import CHAT, World

#: A line: its model, what it used, and whether it completed.
Line = tuple[str, Usage]


def used(read: int, wrote: int = 0, cached: int = 0, thought: int = 0) -> Usage:
    """Usage, in fewer words."""
    return Usage(
        input_tokens=read, cached_tokens=cached, output_tokens=wrote, reasoning_tokens=thought
    )


def sum_of(usages: Sequence[Usage]) -> Usage:
    """All together."""
    return reduce(add, usages, Usage())


def snapshot(
    batch_id: str, lines: Sequence[Line], at_ms: int, tenant: str = "ada"
) -> BatchSnapshot:
    """The batch after its end, with the ledger that these lines make."""
    models = sorted({model for model, _ in lines})
    by_model = tuple(
        ModelUsage(model=model, usage=sum_of([usage for name, usage in lines if name == model]))
        for model in models
    )
    return BatchSnapshot(
        batch_id=batch_id,
        tenant=tenant,
        revision=9,
        status=BatchStatus.COMPLETED,
        created_at_ms=at_ms,
        expires_at_ms=at_ms + 86_400_000,
        completed_at_ms=at_ms,
        endpoint=CHAT,
        input_file_id="file-1",
        completion_window="24h",
        metadata={},
        request_hash="",
        errors=(),
        model=models[0] if len(models) == 1 else None,
        total=len(lines),
        completed=len(lines),
        failed=0,
        usage=sum_of([usage for _, usage in lines]),
        usage_by_model=by_model if len(models) > 1 else (),
        output=ObjectRef(key=f"batches/{batch_id}/assembled/1", size_bytes=0),
    )


def output_line(batch_id: str, number: int, usage: Usage) -> bytes:
    """A line of the output file. Its answer names the model as an upstream may call it."""
    body = {
        "object": "chat.completion",
        "model": "what-the-upstream-calls-it",
        "usage": {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        },
    }
    answer = msgspec.json.encode(body)
    return render.answered(batch_id, number, b'"secret-id"', 200, "req_1", answer) + b"\n"


class BooksWorld:
    """The log, the store and the meter of one installation."""

    def __init__(self) -> None:
        self.meter = World()
        self.meter.customers["ada"] = "cus_ada"
        self.clock = self.meter.clock
        self.sink = self.meter.sink
        self.log = FakeLog(self.clock)
        self.store = FakeObjectStore(self.clock)

    async def batch(self, batch_id: str, lines: Sequence[Line]) -> BatchSnapshot:
        """A batch that ends now; the meter hasn't seen anything of it yet."""
        ended = snapshot(batch_id, lines, self.clock.now_ms())
        models = tuple(sorted({model for model, _ in lines}))
        recorded = UsageRecorded(
            usage_id=f"{batch_id}:1",
            batch_id=batch_id,
            tenant=ended.tenant,
            at_ms=self.clock.now_ms(),
            endpoint=CHAT,
            completion_window="24h",
            batch_created_at_ms=ended.created_at_ms,
            models=models,
            lines=tuple(
                LineUsage(line=n, model=models.index(model), completed=True, usage=usage)
                for n, (model, usage) in enumerate(lines)
            ),
        )
        await self.write_output(ended, [usage for _, usage in lines])
        self.meter.log.append(recorded)
        await self.log.send(USAGE_RECORDED, ended.tenant, recorded)
        await self.log.send(BATCH_STATUS, batch_id, ended)
        return ended

    async def write_output(self, batch: BatchSnapshot, usages: Sequence[Usage]) -> None:
        """Its output file, line by line as given."""
        text = b"".join(output_line(batch.batch_id, n, usage) for n, usage in enumerate(usages))
        assert batch.output is not None
        await self.store.put(batch.output.key, text)

    async def bill(self) -> list[MeterSend]:
        """Runs the meter until it has nothing to do, and an hour more; what it has told."""
        await self.meter.settle()
        self.clock.advance(3600)
        sends = list(self.meter.published.values())
        for send in sends:
            await self.log.send(METER_SEND, send.identifier, send)
        for key, made in self.meter.decisions.items():
            await self.log.send(METER_SEND, key, made)
        return sends

    async def reconcile(self, scope: Scope | None = None, *, sink: bool = True) -> Report:
        """What the command finds."""
        places = Places(
            reader=self.log.reader,
            store=self.store,
            sink=self.sink if sink else None,
            window_s=300.0,
            sleep=self.meter.sleep,
        )
        return await reconcile(places, scope or Scope(), self.clock.now_ms())
