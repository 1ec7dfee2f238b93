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


#: On records that tenants are sent: what kind of record it is, of which batch, and of which line
#: of it, counted from 0.
KIND = "backhaul-kind"
BATCH_ID = "backhaul-batch-id"
LINE = "backhaul-line"


class Kind(StrEnum):
    """What a record of a tenant's results says."""

    #: A batch was made of what came with this key.
    ACCEPTED = "accepted"
    #: Something that came is no batch; the value says why.
    REJECTED = "rejected"
    #: A line of the output file.
    OUTPUT = "output"
    #: A line of the error file.
    ERROR = "error"
    #: A line too large for a record; the value says where it is.
    TOO_LARGE = "too_large"
    #: The batch has ended, and all its lines precede this.
    END = "end"


class DLQReason(StrEnum):
    """Why a record was dead-lettered; never carries any of its content."""

    #: The bytes are not one of our records, or of a version this process doesn't know.
    UNDECODABLE = "undecodable"
    #: A record of ours, but not one that belongs on this topic.
    WRONG_RECORD = "wrong_record"
    #: The record decodes but breaks a rule, such as ids that don't match its key.
    INVALID = "invalid"
