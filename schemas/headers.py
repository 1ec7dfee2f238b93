"""Headers of ours, on Kafka records and on HTTP answers.

A dead-lettered record keeps key, value and headers and gains those of the DLQ.
"""

from __future__ import annotations

from enum import StrEnum

DLQ_REASON = "backhaul-dlq-reason"
DLQ_ERROR = "backhaul-dlq-error"
DLQ_TOPIC = "backhaul-dlq-topic"
DLQ_PARTITION = "backhaul-dlq-partition"
DLQ_OFFSET = "backhaul-dlq-offset"

#: On every record of a table's changelog: the offset of the event that the change follows from.
ROW_WATERMARK = "backhaul-row-watermark"

#: On HTTP answers with the beginning of a running batch's file: how many lines of the input file
#: it is the results of. An answer without it has the whole file.
PARTIAL_LINES = "Backhaul-Partial-Lines"


#: On records that tenants write: what a record that is no line of a batch asks for.
OP = "backhaul-op"


class Op(StrEnum):
    """What a tenant's record asks for. A record without the header is a line."""

    #: A batch begins afresh: what came with this key and was not sealed is forgotten.
    OPEN = "open"
    #: The batch is complete; the value says how to run it, as the body of a create over HTTP.
    SEAL = "seal"
    #: Forget what came with this key.
    ABORT = "abort"


class DLQReason(StrEnum):
    """Why a record was dead-lettered; never carries any of its content."""

    #: The bytes are not one of our records, or of a version this process doesn't know.
    UNDECODABLE = "undecodable"
    #: A record of ours, but not one that belongs on this topic.
    WRONG_RECORD = "wrong_record"
    #: The record decodes but breaks a rule, such as ids that don't match its key.
    INVALID = "invalid"
