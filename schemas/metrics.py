"""The one table of metrics: name, kind, labels and meaning. Dashboards and docs use nothing else.

Roles ask a `Metrics` for the instrument of a row: `metrics.counter(RECORDS_CONSUMED)`. Labels hold
bounded sets only (topics, reasons, pools), never ids of batches, tenants or lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

#: Content type of what `Metrics.exposition` returns.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class MetricKind(StrEnum):
    """How a metric moves."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. Counters' names end in `_total`; units stand in the name."""

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


#: Seconds from a fast hop through Kafka to a long model call.
LATENCY_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)

# Every process
READY = Metric(
    "backhaul_ready", MetricKind.GAUGE, "1 while the process is joined, recovered and can send."
)

# Kafka base
RECORDS_CONSUMED = Metric(
    "backhaul_records_consumed_total",
    MetricKind.COUNTER,
    "Records read by the consumer group and handed to the role.",
    ("topic",),
)
RECORDS_PRODUCED = Metric(
    "backhaul_records_produced_total",
    MetricKind.COUNTER,
    "Records that the broker acknowledged.",
    ("topic",),
)
PRODUCE_FAILURES = Metric(
    "backhaul_produce_failures_total",
    MetricKind.COUNTER,
    "Records that the broker did not take. Any is a reason to look at the brokers.",
    ("topic",),
)
RECORDS_SKIPPED = Metric(
    "backhaul_records_skipped_total",
    MetricKind.COUNTER,
    "Undecodable records passed over by a reader without a group. Should stay 0.",
    ("topic",),
)
DEAD_LETTERS = Metric(
    "backhaul_dead_letters_total",
    MetricKind.COUNTER,
    "Records moved to a dead-letter topic. Should stay 0; look at the record's headers.",
    ("topic", "reason"),
)
REBALANCES = Metric(
    "backhaul_rebalances_total", MetricKind.COUNTER, "Times that partitions were revoked."
)
ASSIGNED_PARTITIONS = Metric(
    "backhaul_assigned_partitions", MetricKind.GAUGE, "Partitions this process holds.", ("topic",)
)
CONSUMER_LAG = Metric(
    "backhaul_consumer_lag_records",
    MetricKind.GAUGE,
    "Records on assigned partitions that this process has not read yet.",
    ("topic",),
)
RECOVERY_SECONDS = Metric(
    "backhaul_table_recovery_seconds",
    MetricKind.GAUGE,
    "How long the last recovery of tables took.",
)

# Webhook-worker
WEBHOOK_ATTEMPTS = Metric(
    "backhaul_webhook_attempts_total",
    MetricKind.COUNTER,
    "Attempts to tell a webhook endpoint of an event, by how they ended.",
    ("outcome",),
)
WEBHOOKS_PENDING = Metric(
    "backhaul_webhook_deliveries_pending",
    MetricKind.GAUGE,
    "Deliveries of this process that are neither delivered nor given up.",
)
WEBHOOKS_DISABLED = Metric(
    "backhaul_webhook_endpoints_disabled_total",
    MetricKind.COUNTER,
    "Endpoints disabled because nothing got through for a day.",
)

# Bridge
SUBMISSIONS = Metric(
    "backhaul_bridge_submissions_total",
    MetricKind.COUNTER,
    "Batches that came through Kafka, and what of their topics could not be a batch.",
    ("kind",),
)
BRIDGE_RESULTS = Metric(
    "backhaul_bridge_results_total",
    MetricKind.COUNTER,
    "Results, and ends, of batches that came through Kafka, written to their tenants' topics.",
    ("kind",),
)
BRIDGE_INCOMPLETE = Metric(
    "backhaul_bridge_incomplete_total",
    MetricKind.COUNTER,
    "Batches whose results did not all get to their tenant's topic, by why. Their files have them.",
    ("reason",),
)
BRIDGE_UNTOLD = Metric(
    "backhaul_bridge_untold_total",
    MetricKind.COUNTER,
    "Answers (accepted, rejected) that a tenant's topic for results did not take. Batches are made "
    "all the same: look whether the topic is there, has a leader and lets the bridge write.",
)

# Gateway
GATEWAY_REQUESTS = Metric(
    "backhaul_gateway_requests_total",
    MetricKind.COUNTER,
    "Requests answered, by route pattern and status; 499 is a client that went away.",
    ("method", "route", "status"),
)
GATEWAY_SECONDS = Metric(
    "backhaul_gateway_request_seconds",
    MetricKind.HISTOGRAM,
    "Time to answer a request, uploads and downloads in full.",
    ("method", "route"),
)

# File-worker
FILE_TASKS = Metric(
    "backhaul_file_tasks_total",
    MetricKind.COUNTER,
    "Intake and assembly tasks answered, by result: validated, rejected, assembled; and bug, "
    "which is an alarm: a task that failed in a way nobody foresaw and is tried again.",
    ("task", "result"),
)
FILE_TASK_SECONDS = Metric(
    "backhaul_file_task_seconds",
    MetricKind.HISTOGRAM,
    "Time from starting a task to its answer, waiting for the object store included.",
    ("task",),
)
FILE_TASKS_HELD = Metric(
    "backhaul_file_tasks_held", MetricKind.GAUGE, "Tasks read and not answered yet.", ("state",)
)
STORE_RETRIES = Metric(
    "backhaul_object_store_retries_total",
    MetricKind.COUNTER,
    "Object store calls that failed and are tried again; 'full' needs room now.",
    ("reason",),
)
LINES_LOST = Metric(
    "backhaul_lines_lost_total",
    MetricKind.COUNTER,
    "Counted lines whose result could not be read back. Should stay 0; any is an alarm.",
)
ASSEMBLY_MISMATCHES = Metric(
    "backhaul_assembly_mismatches_total",
    MetricKind.COUNTER,
    "Batches whose files disagree with the ledger's counts. Should stay 0; any is an alarm.",
)

# Batch-worker
LINE_OUTCOMES = Metric(
    "backhaul_line_outcomes_total",
    MetricKind.COUNTER,
    "Attempts at lines, by how they ended: completed, failed for good, retry; and why.",
    ("kind", "reason"),
)
POOL_HELD = Metric(
    "backhaul_pool_held_lines",
    MetricKind.GAUGE,
    "Lines held for an upstream pool: waiting, running, or on their way to Kafka.",
    ("pool",),
)
POOL_CREDITS = Metric(
    "backhaul_pool_credits", MetricKind.GAUGE, "Lines a pool is willing to hold.", ("pool",)
)

# The gate before each pool
GATE_LIMIT = Metric(
    "backhaul_gate_limit_calls",
    MetricKind.GAUGE,
    "Batch calls that all workers together may have in flight, as this worker's gate has it.",
    ("pool",),
)
GATE_PART = Metric(
    "backhaul_gate_part_calls", MetricKind.GAUGE, "This worker's part of the limit.", ("pool",)
)
GATE_REASON = Metric(
    "backhaul_gate_reason",
    MetricKind.GAUGE,
    "1 for why the limit is what it is: silence, yield, learning, queue, window; stale and invalid "
    "mean that a signal can't be relied on and batch runs at its floor: look at the log.",
    ("pool", "reason"),
)
GATE_SIGNAL_AGE = Metric(
    "backhaul_gate_signal_age_seconds",
    MetricKind.GAUGE,
    "Age of each signal: realtime (of the worker heard least lately), queue, engine. Above 3 it is "
    "stale.",
    ("pool", "signal"),
)
GATE_ABORTS = Metric(
    "backhaul_gate_aborted_calls_total",
    MetricKind.COUNTER,
    "Batch calls that were cut to make room for real-time calls; their lines wait again.",
    ("pool",),
)
GATE_FIRST_TOKEN = Metric(
    "backhaul_gate_first_token_seconds",
    MetricKind.GAUGE,
    "P99 of real-time calls' time to first token: baseline (as it would be without batch), line "
    "(what the target allows), measured.",
    ("pool", "kind"),
)

# Real-time lane
REALTIME_PENDING = Metric(
    "backhaul_realtime_pending_requests",
    MetricKind.GAUGE,
    "Real-time requests that clients of this gateway wait for.",
)
REALTIME_ANSWERS = Metric(
    "backhaul_realtime_answers_total",
    MetricKind.COUNTER,
    "Real-time requests by how they ended at the gateway: answered, refused (by the upstream), "
    "gone (the client), slow (the client), full, share (full for its tenant), no_worker, "
    "worker_lost, timeout, failed, stopped (this gateway, before the answer was whole).",
    ("result",),
)
REALTIME_ANSWERS_LOST = Metric(
    "backhaul_realtime_answers_lost_total",
    MetricKind.COUNTER,
    "Real-time answers that ended with an error because the broker did not take parts of them for "
    "30 s. Should stay 0; look at the brokers, and at the leaders of realtime.reply.",
)
REALTIME_CALLS = Metric(
    "backhaul_realtime_calls_total",
    MetricKind.COUNTER,
    "Real-time calls by upstream pool and how they ended at the worker: completed, cancelled, or "
    "the reason of a failure.",
    ("pool", "result"),
)
REALTIME_IN_FLIGHT = Metric(
    "backhaul_realtime_in_flight_calls",
    MetricKind.GAUGE,
    "Real-time calls that run at an upstream now.",
    ("pool",),
)
REALTIME_TTFT = Metric(
    "backhaul_realtime_first_token_seconds",
    MetricKind.HISTOGRAM,
    "Time from sending a streamed real-time call to its first event.",
    ("pool",),
)
REALTIME_TOKENS = Metric(
    "backhaul_realtime_tokens_total",
    MetricKind.COUNTER,
    "Tokens of real-time calls, as upstreams told them or estimated: input, cached, output, "
    "reasoning.",
    ("pool", "kind"),
)
REALTIME_NOT_RUN = Metric(
    "backhaul_realtime_not_run_total",
    MetricKind.COUNTER,
    "Real-time requests read and not begun: late (nobody waits any more; if it grows, look at "
    "the clocks), seen (delivered twice), cancelled.",
    ("reason",),
)

# Template processes
RENDERS = Metric(
    "backhaul_renders_total",
    MetricKind.COUNTER,
    "Lines whose templates needed a process of their own, by result: rendered, failed, too_large, "
    "timeout.",
    ("result",),
)
RENDER_SECONDS = Metric(
    "backhaul_render_seconds",
    MetricKind.HISTOGRAM,
    "Time that a line had a template process, waiting for its turn not included.",
    buckets=(0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0),
)
RENDERER_ENDS = Metric(
    "backhaul_renderer_processes_ended_total",
    MetricKind.COUNTER,
    "Template processes that had to be replaced, and why: 'spent' and 'died' are costly templates "
    "at their limits; look at the others.",
    ("reason",),
)

# Collector
SEGMENTS_WRITTEN = Metric(
    "backhaul_segments_written_total", MetricKind.COUNTER, "Segment objects stored and announced."
)
LINES_COLLECTED = Metric(
    "backhaul_lines_collected_total",
    MetricKind.COUNTER,
    "Outcomes announced to the controller, by kind: completed, failed, retry.",
    ("kind",),
)
COLLECTOR_HELD = Metric(
    "backhaul_collector_held_bytes", MetricKind.GAUGE, "Outcomes read and not stored yet."
)

# Controller
EVENTS_FOLDED = Metric(
    "backhaul_events_folded_total", MetricKind.COUNTER, "Events folded into the state of batches."
)
LINES_ACCEPTED = Metric(
    "backhaul_lines_accepted_total",
    MetricKind.COUNTER,
    "Lines newly counted, by result: completed, failed. Each line once.",
    ("result",),
)
BATCHES_ENDED = Metric(
    "backhaul_batches_ended_total",
    MetricKind.COUNTER,
    "Batches that reached a final status.",
    ("status",),
)

BATCHES_AT_RISK = Metric(
    "backhaul_batches_at_risk",
    MetricKind.GAUGE,
    "Running batches of this controller that will not be done when their windows end, as things "
    "are now: more workers or upstreams, or a later end, would save them.",
)
BATCHES_QUEUED = Metric(
    "backhaul_batches_queued",
    MetricKind.GAUGE,
    "Running batches of this controller that wait until their tenant's limits leave room.",
)

BATCHES_HELD = Metric(
    "backhaul_batches_held",
    MetricKind.GAUGE,
    "Running batches of this controller that wait for money: the budget of their tenant or of "
    "their API key is used up. `backhaul tenants set --budget` raises it.",
    ("scope",),
)

# Billing
PRICE_BOOK_BAD = Metric(
    "backhaul_price_book_bad",
    MetricKind.GAUGE,
    "1 while the price book's file is wrong and an older one is in force. Should stay 0.",
)

USAGE_LINES = Metric(
    "backhaul_usage_lines_total",
    MetricKind.COUNTER,
    "Lines that the meter counted, each once; flag: ok, missing, absurd (capped, not billed), or "
    "estimated: a stream whose upstream did not tell its usage, or told it where it was not found.",
    ("flag",),
)
METER_CALLS = Metric(
    "backhaul_meter_calls_total",
    MetricKind.COUNTER,
    "Calls to where usage is billed, by what came of them.",
    ("result",),
)
METER_OPEN_SENDS = Metric(
    "backhaul_meter_open_sends",
    MetricKind.GAUGE,
    "Amounts that are not billed yet, by why: pending, sent (not known to have arrived), or what "
    "they are parked for.",
    ("why",),
)
METER_OPEN_TOKENS = Metric(
    "backhaul_meter_open_tokens",
    MetricKind.GAUGE,
    "Tokens of the amounts that are not billed yet, by why.",
    ("why",),
)
METER_OLDEST_S = Metric(
    "backhaul_meter_oldest_open_seconds",
    MetricKind.GAUGE,
    "Age of the oldest amount that waits for nothing but the sink. Above hours the sink is down.",
)

BILLING_REPORTED = Metric(
    "backhaul_billing_reported_errors_total",
    MetricKind.COUNTER,
    "Amounts that Stripe took and then could not bill, by its code, as its webhook tells this "
    "gateway; other: a code that is new, or Stripe could not be asked. Any is a reason to look at "
    "`backhaul billing status`.",
    ("code",),
)

METRICS: tuple[Metric, ...] = (
    WEBHOOK_ATTEMPTS,
    WEBHOOKS_PENDING,
    WEBHOOKS_DISABLED,
    SUBMISSIONS,
    BRIDGE_RESULTS,
    BRIDGE_INCOMPLETE,
    BRIDGE_UNTOLD,
    EVENTS_FOLDED,
    LINES_ACCEPTED,
    BATCHES_ENDED,
    BATCHES_AT_RISK,
    BATCHES_QUEUED,
    BATCHES_HELD,
    READY,
    RECORDS_CONSUMED,
    RECORDS_PRODUCED,
    PRODUCE_FAILURES,
    RECORDS_SKIPPED,
    DEAD_LETTERS,
    REBALANCES,
    ASSIGNED_PARTITIONS,
    CONSUMER_LAG,
    RECOVERY_SECONDS,
    GATEWAY_REQUESTS,
    GATEWAY_SECONDS,
    FILE_TASKS,
    FILE_TASK_SECONDS,
    FILE_TASKS_HELD,
    STORE_RETRIES,
    LINES_LOST,
    ASSEMBLY_MISMATCHES,
    LINE_OUTCOMES,
    POOL_HELD,
    POOL_CREDITS,
    GATE_LIMIT,
    GATE_PART,
    GATE_REASON,
    GATE_SIGNAL_AGE,
    GATE_ABORTS,
    GATE_FIRST_TOKEN,
    REALTIME_PENDING,
    REALTIME_ANSWERS,
    REALTIME_ANSWERS_LOST,
    REALTIME_CALLS,
    REALTIME_IN_FLIGHT,
    REALTIME_TTFT,
    REALTIME_TOKENS,
    REALTIME_NOT_RUN,
    RENDERS,
    RENDER_SECONDS,
    RENDERER_ENDS,
    SEGMENTS_WRITTEN,
    LINES_COLLECTED,
    COLLECTOR_HELD,
    PRICE_BOOK_BAD,
    USAGE_LINES,
    METER_CALLS,
    METER_OPEN_SENDS,
    METER_OPEN_TOKENS,
    METER_OLDEST_S,
    BILLING_REPORTED,
)

Instrument = Counter | Gauge | Histogram
I = TypeVar("I", Counter, Gauge, Histogram)  # noqa: E741 - an instrument


class Metrics:
    """The instruments of one process, made on first use, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._instruments: dict[str, Instrument] = {}

    def counter(self, metric: Metric) -> Counter:
        """The counter of this row."""
        return self._get(
            metric, Counter, lambda m: Counter(m.name, m.help, m.labels, registry=None)
        )

    def gauge(self, metric: Metric) -> Gauge:
        """The gauge of this row."""
        return self._get(metric, Gauge, lambda m: Gauge(m.name, m.help, m.labels, registry=None))

    def histogram(self, metric: Metric) -> Histogram:
        """The histogram of this row."""
        return self._get(metric, Histogram, _histogram)

    def with_process(self) -> Metrics:
        """Adds CPU, memory and open files of this process, and returns itself."""
        ProcessCollector(registry=self.registry)
        return self

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def _get(self, metric: Metric, kind: type[I], make: Callable[[Metric], I]) -> I:
        found = self._instruments.get(metric.name)
        if found is None:
            if metric.kind != kind.__name__.lower():
                raise ValueError(f"{metric.name} is a {metric.kind}, not a {kind.__name__}")
            found = self._instruments[metric.name] = make(metric)
            self.registry.register(found)
        assert isinstance(found, kind)  # noqa: S101 - narrows for the type checker
        return found


def _histogram(metric: Metric) -> Histogram:
    buckets = metric.buckets or LATENCY_BUCKETS
    return Histogram(metric.name, metric.help, metric.labels, buckets=buckets, registry=None)
