"""What a batch on a stored file would use and cost, before there is one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from api.errors import InvalidRequest
from api.gateway import Gateway
from api.views import JSON, amounts
from schemas.records import FileRecord, PromptVersion, Usage
from streams.domain.billing.prices.book import PriceBook
from streams.domain.billing.prices.cost import NoPriceError, cost
from streams.domain.billing.prices.input_tokens import (
    ASSUMED_OUTPUT_TOKENS,
    Asked,
    Estimator,
    Tally,
    TooMuchError,
    limit_and_model,
    message_characters,
)
from streams.domain.billing.tokens import CHARACTERS_PER_TOKEN, add
from streams.domain.intake.intake import too_large
from streams.domain.prompts.registry import listed

#: What is read and looked at between two turns of the event loop: a few milliseconds of work.
_CHUNK_BYTES = 128 * 1024


@dataclass(slots=True)
class ModelEstimate:
    """What the lines of one model will use. model: None where a stored prompt is not known."""

    model: str | None
    lines: int = 0
    assumed_lines: int = 0
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a file's lines will use, and how many of them can't be read."""

    lines: int
    unreadable: int
    models: tuple[ModelEstimate, ...]


async def estimate(gateway: Gateway, file: FileRecord, endpoint: str) -> Estimate:
    """Reads the whole file. Raises InvalidRequest, ObjectStoreError."""
    settings = gateway.settings
    if file.object.size_bytes > settings.max_batch_file_bytes:
        raise _refused(too_large(settings.max_batch_file_bytes))
    estimator = Estimator(endpoint, settings.max_batch_lines, settings.max_line_bytes)
    stream = gateway.store.stream(file.object.key, 0, file.object.size_bytes, _CHUNK_BYTES)
    try:
        async for chunk in stream:
            estimator.feed(chunk)
            await asyncio.sleep(0)
        tallies = estimator.finish()
    except TooMuchError as error:
        raise _refused(str(error)) from error
    models = await _by_model(gateway, file.tenant, tallies)
    return Estimate(estimator.lines, estimator.unreadable, models)


async def _by_model(
    gateway: Gateway, tenant: str, tallies: Mapping[Asked, Tally]
) -> tuple[ModelEstimate, ...]:
    found: dict[str | None, ModelEstimate] = {}
    for asked, tally in tallies.items():
        model, limit, characters = asked.model, None, 0
        if asked.slug is not None:
            text = await _text_of(gateway, tenant, asked.slug, asked.version)
            if text is not None:
                limit, own = limit_and_model(text.model_config)
                model, characters = asked.model or own, message_characters(text.messages)
            else:
                model = None
        one = found.setdefault(model, ModelEstimate(model))
        one.lines += tally.lines
        one.assumed_lines += tally.unlimited_lines if limit is None else 0
        one.usage = add(one.usage, _usage(tally, characters, limit))
    return tuple(found.values())


def _usage(tally: Tally, prompt_characters: int, prompt_limit: int | None) -> Usage:
    """The usage of lines, whose stored prompt has these characters and allows that output."""
    characters = tally.lines * prompt_characters + tally.input_characters
    output = tally.unlimited * (prompt_limit or ASSUMED_OUTPUT_TOKENS)
    return Usage(
        input_tokens=tally.input_tokens + characters // CHARACTERS_PER_TOKEN,
        output_tokens=tally.limited_tokens + output,
    )


async def _text_of(
    gateway: Gateway, tenant: str, slug: str, version: int | None
) -> PromptVersion | None:
    """The text that such lines would be pinned to now."""
    head = await gateway.prompts.prompt(tenant, slug)
    number = None if head is None else version or head.published
    ref = listed(head, number) if head is not None and number is not None else None
    return None if ref is None else await gateway.prompts.text(tenant, slug, ref.version_id)


def view(
    found: Estimate,
    file: FileRecord,
    endpoint: str,
    windows: Iterable[str],
    book: PriceBook | None,
    now_ms: int,
) -> JSON:
    """The answer to who asked; costs by window, null where something has no price."""
    windows = tuple(windows)
    whole = Usage()
    for one in found.models:
        whole = add(whole, one.usage)

    def costs(models: Iterable[ModelEstimate]) -> JSON | None:
        used = {one.model: one.usage for one in models if one.model is not None}
        if book is None or len(used) < len(tuple(models)):
            return None
        try:
            return {
                window: amounts(
                    cost(book, used, endpoint=endpoint, window=window, created_at_ms=now_ms)
                )
                for window in windows
            }
        except NoPriceError:
            return None

    return {
        "object": "cost_estimate",
        "input_file_id": file.file_id,
        "endpoint": endpoint,
        "lines": found.lines,
        "unreadable_lines": found.unreadable,
        "input_tokens": whole.input_tokens,
        "output_tokens": whole.output_tokens,
        "cost": costs(found.models),
        "models": [
            {
                "model": one.model,
                "lines": one.lines,
                "input_tokens": one.usage.input_tokens,
                "output_tokens": one.usage.output_tokens,
                "cost": costs((one,)),
            }
            for one in found.models
        ],
        "assumptions": {
            "characters_per_token": CHARACTERS_PER_TOKEN,
            "output_tokens_without_limit": ASSUMED_OUTPUT_TOKENS,
            "lines_without_limit": sum(one.assumed_lines for one in found.models),
        },
    }


def _refused(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="id", code="invalid_value")
