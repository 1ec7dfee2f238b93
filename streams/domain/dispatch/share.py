"""Dividing one worker's free credits among controllers that don't talk to each other.

Each controller publishes what waits at it, sees what the others published, and computes the same
division; so together they hand out no more than there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Claim:
    """What one controller could release to a pool: lines, of so many tenants."""

    controller: str
    lines: int
    tenants: int = 1


def divide(claims: Sequence[Claim], credits_: int, turn: int) -> dict[str, int]:
    """Credits by controller: in proportion to tenants, nobody more than it has lines for.

    What is left over by rounding goes round with `turn`, so that a single credit does not stay
    with one controller for ever.
    """
    given = {claim.controller: 0 for claim in claims}
    asking = sorted((c for c in claims if c.lines > 0), key=lambda c: c.controller)
    left = credits_
    while True:
        weight = sum(claim.tenants for claim in asking)
        content = [c for c in asking if c.lines <= left * c.tenants // weight]
        if not content:
            break
        for claim in content:
            given[claim.controller] = claim.lines
            left -= claim.lines
        asking = [claim for claim in asking if claim not in content]
    for claim in asking:
        given[claim.controller] = left * claim.tenants // weight
    rest = left - sum(given[claim.controller] for claim in asking) if asking else 0
    for number in range(rest):
        given[asking[(turn + number) % len(asking)].controller] += 1
    return given
