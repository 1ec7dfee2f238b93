"""Reads what matters from an engine's Prometheus page; the page is believed in nothing.

| | vLLM | SGLang |
|---|---|---|
| runs | num_requests_running | num_running_reqs |
| waits | num_requests_waiting | num_queue_reqs |
| KV cache | kv_cache_usage_perc, gpu_cache_usage_perc | token_usage |
| gaps | inter_token_latency_seconds, time_per_output_token_seconds | the same |

Where an engine has both names of a thing, the first is taken. Series of several models or engines
are added up; of the ranks of one engine, which all tell the same, the first is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from streams.domain.gate.signals import EngineLoad

_RUNNING = ("vllm:num_requests_running", "sglang:num_running_reqs")
_WAITING = ("vllm:num_requests_waiting", "sglang:num_queue_reqs")
_KV_CACHE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage")
_GAPS = (
    "vllm:inter_token_latency_seconds",
    "vllm:time_per_output_token_seconds",
    "sglang:inter_token_latency_seconds",
    "sglang:time_per_output_token_seconds",
)
_ENDS = ("count", "sum")
_NAMES = frozenset(
    (*_RUNNING, *_WAITING, *_KV_CACHE, *(f"{name}_{end}" for name in _GAPS for end in _ENDS))
)
_RANKS = ("tp_rank", "pp_rank")
#: Lines of one page that are looked at: far more than engines have series of these names.
_MOST_LINES = 1000


class NotAnEngineError(ValueError):
    """The page has none of the names of an engine's running and waiting requests."""


@dataclass(frozen=True, slots=True)
class EngineReading:
    """What a page says, true or not. gaps, gaps_s: since the engine's start; 0 if it doesn't."""

    running: float
    waiting: float
    kv_cache_usage: float = 0.0
    gaps: float = 0.0
    gaps_s: float = 0.0


def read_page(page: str) -> EngineReading:
    """What the page says. Raises NotAnEngineError."""
    found: dict[str, list[float]] = {}
    for name, labels, value in _samples(page):
        if all(labels.get(rank, "0") == "0" for rank in _RANKS):
            found.setdefault(name, []).append(value)
    running, waiting = _first(found, _RUNNING), _first(found, _WAITING)
    if running is None or waiting is None:
        raise NotAnEngineError(NotAnEngineError.__doc__)
    cache = _first(found, _KV_CACHE) or [0.0]
    gaps = next((name for name in _GAPS if f"{name}_count" in found), "")
    return EngineReading(
        running=sum(running),
        waiting=sum(waiting),
        # Not max(), which may pass over what is not a number.
        kv_cache_usage=sum(cache) if any(map(math.isnan, cache)) else max(cache),
        gaps=sum(found.get(f"{gaps}_count", ())),
        gaps_s=sum(found.get(f"{gaps}_sum", ())),
    )


def engine_load(reading: EngineReading, before: EngineReading | None, at_s: float) -> EngineLoad:
    """The signal, with the gaps since the reading before; none after a restart of the engine."""
    gaps, gaps_s = 0.0, 0.0
    if before is not None and reading.gaps >= before.gaps:
        gaps, gaps_s = reading.gaps - before.gaps, reading.gaps_s - before.gaps_s
    return EngineLoad(
        at_s=at_s,
        waiting=_whole(reading.waiting),
        running=_whole(reading.running),
        kv_cache_usage=reading.kv_cache_usage,
        gaps=_whole(gaps),
        gaps_s=gaps_s,
    )


def _whole(value: float) -> int:
    # What is no number is as impossible as this is, and the gate says so.
    return round(value) if math.isfinite(value) else -1


def _first(found: Mapping[str, list[float]], names: tuple[str, ...]) -> list[float] | None:
    return next((found[name] for name in names if name in found), None)


def _samples(page: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    # The parser is slow, and a page is mostly histograms of other things.
    lines = [line for line in page.splitlines() if line.partition("{")[0].split(" ")[0] in _NAMES]
    for line in lines[:_MOST_LINES]:
        try:
            for family in text_string_to_metric_families(line + "\n"):
                for sample in family.samples:
                    yield sample.name, sample.labels, float(sample.value)
        except (ValueError, KeyError, IndexError, TypeError):
            continue
