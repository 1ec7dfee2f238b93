"""The one table of topics: name, key, records, partitions, clean-up, retention, and why.

`backhaul topics apply` creates what is missing from it and `backhaul topics show` reports drift.
A topic's full name is `<prefix>.<entity>.<event>.v<N>`; the prefix is a setting.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from schemas import records as r

_HOUR_S = 3600
_DAY_S = 24 * _HOUR_S

#: Largest record of any topic. Bodies above the claim-check limit never travel in Kafka, but a
#: slice of lines just below it does, and so does an AssembleTask's bitmap.
MAX_RECORD_BYTES = 4 * 1024 * 1024


class Cleanup(StrEnum):
    """How Kafka removes old records."""

    DELETE = "delete"
    COMPACT = "compact"


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One topic.

    key: what the record key is ('' where the partition is chosen explicitly).
    records: the record types a value may be; none where it is another's bytes.
    partitions: default count when it is created; keyed topics never change it afterwards.
    retention_s: for delete; None for compact. compaction_lag_s: min.compaction.lag.ms / 1000.
    """

    name: str
    key: str
    records: tuple[type[r.Record], ...]
    partitions: int
    cleanup: Cleanup
    retention_s: int | None
    compaction_lag_s: int | None = None
    #: Whether the broker says when a record came, whatever its producer says.
    stamped: bool = False
    why: str

    @property
    def keyed(self) -> bool:
        """Whether the partition follows from the key, so that the count can't change."""
        return self.key != ""

    def full_name(self, prefix: str) -> str:
        """The topic's name on the cluster."""
        return f"{prefix}.{self.name}"


@dataclass(frozen=True, kw_only=True)
class TenantTopic:
    """A topic that each tenant has for itself, so that an ACL can name it.

    The topic is `<prefix>.<name>.<tenant>.v<version>`; a tenant's name has no dot. retention_s,
    stamped: as a Topic's.
    """

    name: str
    version: int
    key: str
    partitions: int
    retention_s: int
    stamped: bool = False
    why: str

    def of(self, tenant: str) -> Topic:
        """The tenant's own."""
        return Topic(
            name=f"{self.name}.{tenant}.v{self.version}",
            key=self.key,
            records=(),
            partitions=self.partitions,
            cleanup=Cleanup.DELETE,
            retention_s=self.retention_s,
            stamped=self.stamped,
            why=self.why,
        )

    def pattern(self, prefix: str) -> str:
        """A regular expression for the full names of all tenants' topics, and no other's."""
        name = re.escape(f"{prefix}.{self.name}.")
        return rf"^{name}({TENANT_PATTERN})\.v{self.version}$"

    def tenant(self, prefix: str, full_name: str) -> str | None:
        """Whose topic it is; None for any other topic."""
        found = re.fullmatch(self.pattern(prefix), full_name)
        return found[1] if found else None


#: What tenants may be called: their names are part of object keys and of topic names.
TENANT_PATTERN = "[A-Za-z0-9][A-Za-z0-9_-]{0,63}"

BATCH_IN = TenantTopic(
    name="batch-in",
    version=1,
    key="what the producer calls the batch",
    partitions=4,
    retention_s=7 * _DAY_S,
    # When a batch was created follows from the records' times.
    stamped=True,
    why="Lines and seals of a tenant's batches, written by its own services. One key, so one "
    "partition, for all records of a batch.",
)
BATCH_OUT = TenantTopic(
    name="batch-out",
    version=1,
    key="what the producer calls the batch",
    partitions=4,
    retention_s=7 * _DAY_S,
    why="What became of those batches: whether they were taken, and their results, in the order "
    "of the lines.",
)

BATCH_COMMAND = Topic(
    name="batch.command.v1",
    key="batch id",
    records=(r.BatchCreate, r.BatchCancel, r.BatchPause, r.BatchResume, r.BatchChange),
    partitions=4,
    cleanup=Cleanup.DELETE,
    retention_s=35 * _DAY_S,
    why="What callers ask of a batch. Any producer's partitioner will do: commands are re-emitted.",
)
BATCH_EVENT = Topic(
    name="batch.event.v1",
    key="batch id",
    records=(
        r.BatchCreate,
        r.BatchCancel,
        r.BatchPause,
        r.BatchResume,
        r.BatchChange,
        r.BatchValidated,
        r.BatchRejected,
        r.SegmentWritten,
        r.BatchAssembled,
        r.BatchWindowEnded,
    ),
    partitions=4,
    cleanup=Cleanup.DELETE,
    retention_s=35 * _DAY_S,
    why="The one log of a batch, so that a replay interleaves as the first reading did. "
    "The controller's tables have the same partitions.",
)
BATCH_STATUS = Topic(
    name="batch.status.v1",
    key="batch id",
    records=(r.BatchSnapshot,),
    partitions=4,
    cleanup=Cleanup.COMPACT,
    retention_s=None,
    why="The latest snapshot of each batch, for the gateways' read models and for workers that "
    "drop lines of ended batches.",
)
BATCH_FORECAST = Topic(
    name="batch.forecast.v1",
    key="instance id",
    records=(r.BatchForecasts,),
    partitions=1,
    cleanup=Cleanup.DELETE,
    retention_s=_HOUR_S,
    why="What is foreseen for running batches, for the gateways. Said again within 10 minutes, so "
    "an hour is plenty, and nothing of a batch that has ended needs to be removed.",
)
FILE = Topic(
    name="file.v1",
    key="file id",
    records=(r.FileRecord,),
    partitions=4,
    cleanup=Cleanup.COMPACT,
    retention_s=None,
    why="Every file, until its bytes are gone and a tombstone follows.",
)
ACCOUNT = Topic(
    name="account.v1",
    key="key id, that and /revoked, or tenant/ or customer/ and the tenant's name",
    records=(r.ApiKeyRecord, r.TenantRecord, r.BillingCustomer),
    partitions=1,
    cleanup=Cleanup.COMPACT,
    retention_s=None,
    why="API keys, hashed, tenants' limits and whom they are billed to. Small; one partition keeps "
    "the order of a key's life plain.",
)
PROMPT = Topic(
    name="prompt.v1",
    key="prompt revision or version",
    records=(r.PromptHead, r.PromptVersion),
    partitions=1,
    cleanup=Cleanup.COMPACT,
    retention_s=None,
    why="Stored prompts. No two writes share a key, so that compaction never prefers a later one "
    "of a revision to the first; what is superseded gets a tombstone. One partition, so that a "
    "version precedes the head that lists it and one offset says how far it was read.",
)
WEBHOOK = Topic(
    name="webhook.v1",
    key="endpoint id, or that of one change",
    records=(r.WebhookEndpoint,),
    partitions=1,
    cleanup=Cleanup.COMPACT,
    retention_s=None,
    why="Tenants' webhook endpoints with their secrets. Small. As on the prompts' topic no two "
    "writes share a key, and what is superseded or deleted gets a tombstone. One partition, so "
    "that all writes of an endpoint have an order.",
)
WEBHOOK_EVENT = Topic(
    name="webhook.event.v1",
    key="tenant",
    records=(r.BatchEnded, r.WebhookCommand),
    partitions=4,
    cleanup=Cleanup.DELETE,
    retention_s=7 * _DAY_S,
    why="What webhooks are to be told, and what callers ask of them. Keyed by tenant, so that one "
    "worker has all of a tenant's deliveries; its tables have the same partitions.",
)
WEBHOOK_DELIVERY = Topic(
    name="webhook.delivery.v1",
    key="endpoint id, or it, a slash and the event id",
    records=(r.WebhookDelivery, r.WebhookState),
    partitions=1,
    cleanup=Cleanup.COMPACT,
    retention_s=None,
    why="How each recent delivery and each endpoint stands, for the gateways.",
)
FILE_TASK = Topic(
    name="file.task.v1",
    key="batch id",
    records=(r.IntakeTask, r.AssembleTask),
    partitions=4,
    cleanup=Cleanup.DELETE,
    retention_s=7 * _DAY_S,
    why="Work for the file-workers.",
)
LINE_READY = Topic(
    name="line.ready.v1",
    key="",
    records=(r.ReadyLines,),
    partitions=8,
    cleanup=Cleanup.DELETE,
    retention_s=8 * _DAY_S,
    why="Slices of lines to run, kept shallow by the dispatcher. The partition is that of a worker "
    "with credits, so there must be at least as many partitions as batch-workers.",
)
LINE_DONE = Topic(
    name="line.done.v1",
    key="batch id",
    records=(r.DoneLines,),
    partitions=4,
    cleanup=Cleanup.DELETE,
    retention_s=7 * _DAY_S,
    why="Outcomes. Keyed by batch, so that one collector packs all outcomes of a batch in order.",
)
USAGE_RECORDED = Topic(
    name="usage.recorded.v1",
    key="tenant",
    records=(r.UsageRecorded, r.BillingCommand),
    partitions=4,
    cleanup=Cleanup.DELETE,
    retention_s=90 * _DAY_S,
    why="Usage of newly accepted lines: the billing truth. Late replays need the long retention. "
    "Also what operators decide about amounts, so that the meter that has a tenant's tables reads "
    "it.",
)
METER_SEND = Topic(
    name="meter.send.v1",
    key="identifier, or command id",
    records=(r.MeterSend, r.BillingDecision),
    partitions=4,
    cleanup=Cleanup.COMPACT,
    retention_s=None,
    why="The latest state of every amount that was or will be billed: what anyone reads who shows "
    "or checks the bill, with operators' decisions about them. Never deleted: some hundred bytes "
    "for up to an hour of a batch.",
)
BILLING_REPORT = Topic(
    name="billing.report.v1",
    key="Stripe's event id",
    records=(r.BillingReport,),
    partitions=1,
    cleanup=Cleanup.DELETE,
    retention_s=90 * _DAY_S,
    why="What Stripe says later of usage that it took. Few; kept as long as the usage itself.",
)
CAPACITY = Topic(
    name="capacity.v1",
    key="instance id",
    records=(r.WorkerLoad, r.ControllerLoad, r.RealtimeLoad),
    partitions=1,
    cleanup=Cleanup.COMPACT,
    retention_s=None,
    why="Each process's present load and credits. Read without a group; only the latest counts.",
)
REALTIME_REQUEST = Topic(
    name="realtime.request.v1",
    key="request id",
    records=(r.RealtimeRequest,),
    partitions=8,
    cleanup=Cleanup.DELETE,
    retention_s=_HOUR_S,
    why="Requests that clients wait for. Keyed by request, so that they spread over the workers; "
    "there must be at least as many partitions as realtime-workers.",
)
REALTIME_REPLY = Topic(
    name="realtime.reply.v1",
    key="",
    records=(r.RealtimeReplies,),
    partitions=16,
    cleanup=Cleanup.DELETE,
    retention_s=_HOUR_S,
    why="Answers, to the partition that the asking gateway reads; gateways may share one, and "
    "pass over what they did not ask.",
)
REALTIME_CANCEL = Topic(
    name="realtime.cancel.v1",
    key="gateway",
    records=(r.RealtimeCancel,),
    partitions=1,
    cleanup=Cleanup.DELETE,
    retention_s=_HOUR_S,
    why="Clients that went away. Every realtime-worker reads all of it, since nobody else knows "
    "which one has the request.",
)

TOPICS: tuple[Topic, ...] = (
    BATCH_COMMAND,
    BATCH_EVENT,
    BATCH_STATUS,
    BATCH_FORECAST,
    FILE,
    ACCOUNT,
    PROMPT,
    WEBHOOK,
    WEBHOOK_EVENT,
    WEBHOOK_DELIVERY,
    FILE_TASK,
    LINE_READY,
    LINE_DONE,
    USAGE_RECORDED,
    METER_SEND,
    BILLING_REPORT,
    CAPACITY,
    REALTIME_REQUEST,
    REALTIME_REPLY,
    REALTIME_CANCEL,
)

#: Suffix of the topic to which undecodable records of a consumed topic are moved.
DLQ_SUFFIX = ".dlq"
DLQ_RETENTION_S = 30 * _DAY_S
#: Topics read by an acking consumer group: each has a dead-letter topic.
GROUP_TOPICS: tuple[Topic, ...] = (
    BATCH_COMMAND,
    BATCH_EVENT,
    FILE_TASK,
    LINE_READY,
    LINE_DONE,
    USAGE_RECORDED,
    REALTIME_REQUEST,
    WEBHOOK_EVENT,
)
#: Topics that share keys with tables or with each other and so have equal partition counts.
COPARTITIONED: tuple[Topic, ...] = (BATCH_COMMAND, BATCH_EVENT)
