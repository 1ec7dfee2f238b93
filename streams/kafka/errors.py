"""What can go wrong between a process and Kafka, each with its remedy.

KafkaBaseError
├── BrokerUnreachable
├── TopicMissing
├── TopicsDiffer
├── SendFailed
│   └── RecordTooLarge
├── Fenced
├── TooManyDeadLetters
└── Stalled
"""

# ruff: noqa: N818 - each name is what is wrong, as in "raises Fenced"

from __future__ import annotations


class KafkaBaseError(Exception):
    """Something is wrong between this process and Kafka."""


class BrokerUnreachable(KafkaBaseError):
    """No Kafka broker answers. Start one (`backhaul up`), or set BACKHAUL_KAFKA."""


class TopicMissing(KafkaBaseError):
    """A topic does not exist. Run `backhaul topics apply`."""


class TopicsDiffer(KafkaBaseError):
    """A keyed topic has another partition count than the topic table. Growth is a new `.vN`."""


class SendFailed(KafkaBaseError):
    """The broker did not take a record; whether it has it is unknown."""


class RecordTooLarge(SendFailed):
    """The record is larger than MAX_RECORD_BYTES and was not sent; such a body is a claim check."""


class Fenced(KafkaBaseError):
    """This process was not heard by its group for too long; its work may be another's by now."""


class TooManyDeadLetters(KafkaBaseError):
    """So many records can't be read that the cause is probably this process, not the records."""


class Stalled(KafkaBaseError):
    """Records wait on assigned partitions, but nothing was read for too long."""
