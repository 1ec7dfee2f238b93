"""When a failed attempt is repeated: as the upstream asks, otherwise exponentially with jitter."""

from __future__ import annotations

import math
from collections.abc import Callable
from email.utils import parsedate_to_datetime

import msgspec

#: An upstream that asks for a longer pause is asked again after this long.
MAX_RETRY_AFTER_S = 3600.0
#: Each pause is this many times the one before.
_FACTOR = 4.0
_MAX_EXPONENT = 16
#: Lines that were told the same moment spread over this share of the pause, within bounds.
_SPREAD = 0.1
_MIN_SPREAD_S, _MAX_SPREAD_S = 0.1, 5.0


class RetryPolicy(msgspec.Struct, frozen=True):
    """How often a line is tried, and the bounds of the pauses between."""

    max_attempts: int
    first_s: float = 1.0
    max_s: float = 120.0


def pause_s(
    policy: RetryPolicy, attempt: int, asked_s: float | None, random: Callable[[], float]
) -> float:
    """Seconds until the attempt after `attempt`. `random` gives numbers in [0, 1)."""
    if asked_s is not None:
        return asked_s + random() * min(max(asked_s * _SPREAD, _MIN_SPREAD_S), _MAX_SPREAD_S)
    exponent = min(max(attempt - 1, 0), _MAX_EXPONENT)
    full = min(policy.first_s * _FACTOR**exponent, policy.max_s)
    return full * (0.5 + 0.5 * random())


def asked_pause_s(retry_after_ms: str, retry_after: str, now_ms: int) -> float | None:
    """The pause in the headers `retry-after-ms` and `Retry-After`; None if there is none."""
    asked = _number(retry_after_ms, 1000)
    if asked is None:
        asked = _number(retry_after, 1)
    if asked is None:
        asked = _until(retry_after, now_ms)
    return None if asked is None else min(max(asked, 0.0), MAX_RETRY_AFTER_S)


def _number(text: str, per_second: int) -> float | None:
    try:
        value = float(text) / per_second
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _until(text: str, now_ms: int) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp() - now_ms / 1000
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
