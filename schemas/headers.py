"""Kafka headers of ours. A dead-lettered record keeps key, value and headers and gains these."""

from __future__ import annotations

from enum import StrEnum

DLQ_REASON = "backhaul-dlq-reason"
DLQ_ERROR = "backhaul-dlq-error"
DLQ_TOPIC = "backhaul-dlq-topic"
DLQ_PARTITION = "backhaul-dlq-partition"
DLQ_OFFSET = "backhaul-dlq-offset"

#: On every record of a table's changelog: the offset of the event that the change follows from.
ROW_WATERMARK = "backhaul-row-watermark"


class DLQReason(StrEnum):
    """Why a record was dead-lettered; never carries any of its content."""

    #: The bytes are not one of our records, or of a version this process doesn't know.
    UNDECODABLE = "undecodable"
    #: A record of ours, but not one that belongs on this topic.
    WRONG_RECORD = "wrong_record"
    #: The record decodes but breaks a rule, such as ids that don't match its key.
    INVALID = "invalid"
