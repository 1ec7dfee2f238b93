"""What the gate may know: signals of one upstream and model, each with the time it was taken.

| signal | from | tells |
|---|---|---|
| RealtimeLoad | each realtime-worker, on change and each second | calls in flight, new samples |
| QueueLoad | the lag reader of the real-time consumer group | what waits in Kafka |
| EngineLoad | the engine's /metrics | what waits and runs in it, whoever sent it |

A signal is believed if its values are possible and it is not older than `STALE_AFTER_S`. One that
can't be true (NaN, negative, a year old, from the future) is worth no more than none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

#: Loads come each second; three missing ones are silence.
STALE_AFTER_S = 3.0
#: How far clocks of two machines may differ.
_SKEW_S = 1.0
#: Nothing that we count gets near this.
_ABSURD = 1_000_000
_LONGEST_S = 3600.0


class Source(StrEnum):
    """Where a signal comes from; also its label in metrics."""

    REALTIME = "realtime"
    QUEUE = "queue"
    ENGINE = "engine"


@dataclass(frozen=True, slots=True)
class FirstToken:
    """One real-time call's first token: when the call was sent, and how long that token took."""

    sent_at_s: float
    ttft_s: float


@dataclass(frozen=True, slots=True)
class RealtimeLoad:
    """One realtime-worker's calls to this upstream and model. Times in seconds.

    in_flight: calls now. first_tokens: those that came since the record before.
    gaps, gaps_s: inter-token gaps since the record before: how many, and their sum.
    awaiting: those of the calls in flight that wait for their first token at the upstream.
    """

    worker: str
    at_s: float
    in_flight: int
    first_tokens: Sequence[FirstToken] = ()
    gaps: int = 0
    gaps_s: float = 0.0
    awaiting: int = 0


@dataclass(frozen=True, slots=True)
class QueueLoad:
    """Real-time requests in Kafka that no worker has taken yet, and the age of the oldest."""

    at_s: float
    lag: int
    oldest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What vLLM or SGLang shows of itself; kv_cache_usage from 0 to 1.

    gaps, gaps_s: inter-token gaps of all its sequences since the record before, how many and their
    sum: the difference of two readings of `vllm:inter_token_latency_seconds_count` and `_sum`.
    """

    at_s: float
    waiting: int
    running: int
    kv_cache_usage: float = 0.0
    gaps: int = 0
    gaps_s: float = 0.0


Signal = RealtimeLoad | QueueLoad | EngineLoad


def source_of(signal: Signal) -> Source:
    """Where the signal comes from."""
    match signal:
        case RealtimeLoad():
            return Source.REALTIME
        case QueueLoad():
            return Source.QUEUE
        case EngineLoad():
            return Source.ENGINE


def is_possible(signal: Signal, now_s: float) -> bool:
    """Whether the signal can be true, and is of now."""
    return _is_recent(signal.at_s, now_s) and _has_possible_values(signal, now_s)


def _is_recent(at_s: float, now_s: float) -> bool:
    return math.isfinite(at_s) and -STALE_AFTER_S <= at_s - now_s <= _SKEW_S


def _has_possible_values(signal: Signal, now_s: float) -> bool:
    match signal:
        case RealtimeLoad():
            return (
                _is_number(signal.in_flight)
                and _is_number(signal.awaiting)
                and _are_gaps(signal.gaps, signal.gaps_s)
                and all(_is_sample(token, now_s) for token in signal.first_tokens)
            )
        case QueueLoad():
            return _is_number(signal.lag) and _is_number(signal.oldest_s, math.inf)
        case EngineLoad():
            return (
                _is_number(signal.waiting)
                and _is_number(signal.running)
                and _is_number(signal.kv_cache_usage, 1.05)
                and _are_gaps(signal.gaps, signal.gaps_s)
            )


def _is_number(value: float, most: float = _ABSURD) -> bool:
    return math.isfinite(value) and 0 <= value <= most


def _are_gaps(gaps: int, gaps_s: float) -> bool:
    many = _is_number(gaps) and _is_number(gaps_s, _LONGEST_S * max(1, gaps))
    return many and (gaps == 0 or gaps_s > 0)


def _is_sample(token: FirstToken, now_s: float) -> bool:
    return (
        _is_number(token.ttft_s, _LONGEST_S)
        and token.ttft_s > 0
        and math.isfinite(token.sent_at_s)
        and -_LONGEST_S <= token.sent_at_s - now_s <= _SKEW_S
    )
