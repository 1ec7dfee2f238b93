"""The simulated server's /metrics page, with the names that vLLM gives these figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from streams.simulator.fleet import Fleet
from streams.simulator.live_engine import EngineBehaviour

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_LABELS = ("model_name",)
_GAUGES = (
    ("vllm:num_requests_running", "Requests in the running batch.", "running"),
    ("vllm:num_requests_waiting", "Requests that wait to be run.", "waiting"),
    ("vllm:kv_cache_usage_perc", "KV cache in use, 1 is all of it.", "kv_cache_usage"),
)
_COUNTERS = (
    ("vllm:prompt_tokens", "Prompt tokens taken in.", "prompt_tokens"),
    ("vllm:generation_tokens", "Tokens generated.", "generated_tokens"),
    ("vllm:num_preemptions", "Preemptions of requests that were answered.", "preemptions"),
)
_HISTOGRAMS = (
    ("vllm:time_to_first_token_seconds", "From arrival to the first token.", "firsts"),
    ("vllm:inter_token_latency_seconds", "From one token of an answer to the next.", "gaps"),
)


def metrics_page(fleet: Fleet) -> bytes:
    """The page now."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Page(fleet))
    return generate_latest(registry)


class _Page(Collector):
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def collect(self) -> Iterator[Metric]:
        """Every figure of every engine."""
        yield from self._gauges()
        engines = [
            (model, engine.behaviour)
            for model, engine in self._fleet.engines().items()
            if isinstance(engine.behaviour, EngineBehaviour)
        ]
        if engines:
            yield from _totals(engines)

    def _gauges(self) -> Iterator[Metric]:
        shown = self._fleet.gauges()
        for name, text, key in _GAUGES:
            family = GaugeMetricFamily(name, text, labels=_LABELS)
            for model, gauges in shown.items():
                if key in gauges:
                    family.add_metric([model], gauges[key])
            yield family


def _totals(engines: Iterable[tuple[str, EngineBehaviour]]) -> Iterator[Metric]:
    success = CounterMetricFamily(
        "vllm:request_success", "Requests answered whole.", labels=(*_LABELS, "finished_reason")
    )
    for model, behaviour in engines:
        success.add_metric([model, "stop"], behaviour.counts.finished)
    yield success
    for name, text, key in _COUNTERS:
        counter = CounterMetricFamily(name, text, labels=_LABELS)
        for model, behaviour in engines:
            counter.add_metric([model], getattr(behaviour.counts, key))
        yield counter
    for name, text, key in _HISTOGRAMS:
        histogram = HistogramMetricFamily(name, text, labels=_LABELS)
        for model, behaviour in engines:
            found = getattr(behaviour.counts, key)
            histogram.add_metric([model], buckets=found.buckets(), sum_value=found.sum)
        yield histogram
