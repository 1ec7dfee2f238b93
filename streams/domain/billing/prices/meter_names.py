"""What a Stripe meter is called.

A meter belongs to one line of the price book and one type of token, so it has one price for ever:
prices can't look into an event's payload, and a batch keeps the price of the day it was created.
Batch has meters of its own, at list price less the discount; no count of tokens is falsified.

    backhaul_batch_input_tokens_gpt-4o-mini_24h_2026-01-01
    backhaul_realtime_output_tokens_other_2026-01-01         other: rates of models not in the book
    backhaul_batch_input_tokens                              without a price book
"""

from __future__ import annotations

import hashlib
import re

from streams.domain.billing.prices.book import OTHER_MODELS, REALTIME, PriceLine
from streams.domain.billing.tokens import TokenType

#: Stripe's limit for names of events, and for identifiers.
MAX_NAME_CHARS = 100
_DIGEST_CHARS = 10
_ODD = re.compile(r"[^A-Za-z0-9_.-]")


def meter_of(token_type: TokenType, window: str, line: PriceLine | None) -> str:
    """The event name of the meter; line: what applies, None without a price book."""
    if line is not None and token_type is TokenType.REASONING and line.rates.reasoning is None:
        # It costs as output does, so it is output on the invoice, too.
        token_type = TokenType.OUTPUT
    kind = "realtime" if window == REALTIME else "batch"
    base = f"backhaul_{kind}_{token_type.value}_tokens"
    if line is None:
        return base
    model = "other" if line.model == OTHER_MODELS else line.model
    parts = (base, model, line.endpoint, line.window, line.valid_from.isoformat())
    return _bounded("_".join(part for part in parts if part))


def identifier_of(
    tenant: str, batch_id: str, model: str, token_type: str, flagged: bool, flush: int
) -> str:
    """What one send is called at Stripe: follows from what is sent, never from the attempt."""
    whole = "\0".join((tenant, batch_id, model, token_type, str(flagged)))
    digest = hashlib.sha256(whole.encode()).hexdigest()[:20]
    return f"{_ODD.sub('_', batch_id)[:60]}:{digest}:{flush}"


def _bounded(name: str) -> str:
    """A name of the allowed length and letters, still of its own if it had to be changed."""
    plain = _ODD.sub("_", name)
    if plain == name and len(name) <= MAX_NAME_CHARS:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGEST_CHARS]
    return f"{plain[: MAX_NAME_CHARS - _DIGEST_CHARS - 1]}_{digest}"
