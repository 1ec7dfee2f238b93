"""Records as the JSON objects that callers see: OpenAI's Batch, File and list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from aiohttp import web

from api.batches.partial import UNFINISHED
from api.read_model.forecasts import Foreseen
from api.read_model.schema import ended_at_ms
from schemas.records import BatchError, BatchSnapshot, BudgetHold, FileRecord, Usage
from streams.domain.billing.prices.batch_cost import batch_cost
from streams.domain.billing.prices.book import PriceBook
from streams.domain.billing.prices.cost import Cost, money
from streams.domain.ids import error_file_id, output_file_id

JSON = dict[str, Any]


def answer(body: JSON, headers: Mapping[str, str] | None = None) -> web.Response:
    """200 with a JSON body."""
    return web.Response(
        body=msgspec.json.encode(body), content_type="application/json", headers=headers
    )


def batch(snapshot: BatchSnapshot, foreseen: Foreseen, prices: PriceBook | None) -> JSON:
    """A Batch, with every field that OpenAI's has."""
    return {
        "id": snapshot.batch_id,
        "object": "batch",
        "endpoint": snapshot.endpoint,
        "model": snapshot.model,
        "errors": errors(snapshot.errors),
        "input_file_id": snapshot.input_file_id,
        "completion_window": snapshot.completion_window,
        "status": snapshot.status.value,
        "output_file_id": snapshot.output_file_id,
        "error_file_id": snapshot.error_file_id,
        "created_at": snapshot.created_at_ms // 1000,
        "in_progress_at": _seconds(snapshot.in_progress_at_ms),
        "expires_at": snapshot.expires_at_ms // 1000,
        "finalizing_at": _seconds(snapshot.finalizing_at_ms),
        "completed_at": _seconds(snapshot.completed_at_ms),
        "failed_at": _seconds(snapshot.failed_at_ms),
        "expired_at": _seconds(snapshot.expired_at_ms),
        "cancelling_at": _seconds(snapshot.cancelling_at_ms),
        "cancelled_at": _seconds(snapshot.cancelled_at_ms),
        "request_counts": counts(snapshot),
        "usage": usage(snapshot.usage),
        "metadata": snapshot.metadata or None,
        # These are ours: what it costs, what is foreseen, what live control shows, where files can
        # be read before they are whole, where it comes from, and the versions of stored prompts
        # that its lines use.
        "cost": _cost(snapshot, prices),
        "eta": foreseen.eta,
        "at_risk": foreseen.at_risk,
        "queue_position": foreseen.queue_position,
        "queued": foreseen.queued,
        "hold": None if foreseen.hold is None else _hold(foreseen.hold),
        "priority": snapshot.priority,
        "paused_at": _seconds(snapshot.paused_at_ms),
        **_partial_files(snapshot),
        "origin_batch_id": snapshot.origin_batch_id,
        "api_key_id": snapshot.key_id,
        "prompts": [
            {"slug": p.slug, "version": p.version, "lines": p.lines} for p in snapshot.prompts
        ],
        "warnings": _warnings(snapshot),
    }


def file(record: FileRecord) -> JSON:
    """A File. `status` is deprecated but the SDKs require it."""
    found = {
        "id": record.file_id,
        "object": "file",
        "bytes": record.object.size_bytes,
        "created_at": record.created_at_ms // 1000,
        "filename": record.filename,
        "purpose": record.purpose,
        "status": "processed",
        "status_details": None,
    }
    if record.expires_at_ms is not None:
        found["expires_at"] = record.expires_at_ms // 1000
    return found


def page(data: Sequence[JSON], *, has_more: bool) -> JSON:
    """A list."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }


def usage(used: Usage) -> JSON:
    """Token counts, as a Batch has them."""
    return {
        "input_tokens": used.input_tokens,
        "input_tokens_details": {"cached_tokens": used.cached_tokens},
        "output_tokens": used.output_tokens,
        "output_tokens_details": {"reasoning_tokens": used.reasoning_tokens},
        "total_tokens": used.input_tokens + used.output_tokens,
    }


def counts(snapshot: BatchSnapshot) -> JSON:
    """A Batch's `request_counts`."""
    return {
        "total": snapshot.total,
        "completed": snapshot.completed,
        "failed": snapshot.failed,
    }


def errors(found: Sequence[BatchError]) -> JSON | None:
    """A Batch's `errors`, of its validation."""
    if not found:
        return None
    data = [{"code": e.code, "message": e.message, "param": e.param, "line": e.line} for e in found]
    return {"object": "list", "data": data}


def amounts(cost: Cost) -> JSON:
    """Money, as decimal strings of the currency's major unit."""
    return {
        "list": money(cost.list_micros),
        "discount": money(cost.discount_micros),
        "billed": money(cost.billed_micros),
        "currency": cost.currency,
    }


def _cost(snapshot: BatchSnapshot, prices: PriceBook | None) -> JSON | None:
    found = None if prices is None else batch_cost(prices, snapshot)
    if found is None:
        return None
    running = ended_at_ms(snapshot) is None
    return {**amounts(found), "status": "estimate" if running else "confirmed"}


def _hold(hold: BudgetHold) -> JSON:
    """Why a batch waits for money, and what can be done."""
    whose = "API key that created it" if hold.scope == "key" else "tenant"
    when = "" if hold.until_ms is None else f" or the next {hold.period} begins (UTC)"
    budget, spent = money(hold.budget_micros), money(hold.spent_micros)
    estimate = None if hold.estimate_micros is None else money(hold.estimate_micros)
    why = f"is used up: {spent} of {budget} {hold.currency}"
    if estimate is not None:
        why = f"leaves too little: {spent} of {budget} {hold.currency} is spent, and the batch will"
        why += f" cost {estimate} by its estimate"
    return {
        "reason": hold.reason,
        "scope": hold.scope,
        "budget": budget,
        "spent": spent,
        "estimate": estimate,
        "currency": hold.currency,
        "period": hold.period,
        "until": _seconds(hold.until_ms),
        "message": f"The budget of the {whose} {why}. "
        f"The batch goes on by itself when an operator raises the budget{when}; "
        "resuming it does not lift this.",
    }


def _partial_files(snapshot: BatchSnapshot) -> JSON:
    """The ids under which what is there of the files can be read while they are not whole."""
    there = snapshot.status in UNFINISHED and snapshot.accepted_prefix > 0
    return {
        "partial_output_file_id": output_file_id(snapshot.batch_id) if there else None,
        "partial_error_file_id": error_file_id(snapshot.batch_id) if there else None,
    }


def _warnings(snapshot: BatchSnapshot) -> JSON | None:
    if not snapshot.unused_variables:
        return None
    return {"unused_variables": snapshot.unused_variables}


def _seconds(ms: int | None) -> int | None:
    return None if ms is None else ms // 1000
