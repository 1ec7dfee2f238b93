"""What a batch has cost so far, from what its snapshot says of its usage."""

from __future__ import annotations

from collections.abc import Mapping

from schemas.records import BatchSnapshot, Usage
from streams.domain.billing.prices.book import PriceBook
from streams.domain.billing.prices.cost import Cost, NoPriceError, cost
from streams.domain.billing.tokens import add

_NONE = Usage()


def used_by_model(batch: BatchSnapshot) -> Mapping[str, Usage] | None:
    """The batch's usage by model; None if only the sum over its models is known.

    That is so of batches with several models of which a controller before this version counted
    lines: then the parts don't add up to the whole.
    """
    if batch.usage == _NONE:
        return {}
    if batch.model is not None:
        return {batch.model: batch.usage}
    found = {part.model: part.usage for part in batch.usage_by_model}
    whole = _NONE
    for used in found.values():
        whole = add(whole, used)
    return found if whole == batch.usage else None


def batch_cost(book: PriceBook, batch: BatchSnapshot) -> Cost | None:
    """What the batch's accepted lines cost; None if that can't be said exactly.

    Then its usage is not known by model, or the book has no price for one of these any more.
    """
    used = used_by_model(batch)
    if used is None:
        return None
    try:
        return cost(
            book,
            used,
            endpoint=batch.endpoint,
            window=batch.completion_window,
            created_at_ms=batch.created_at_ms,
        )
    except NoPriceError:
        return None
