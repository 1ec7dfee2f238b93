"""The smaller parts of the Kafka base: connection, fence, brake, topic table, names, log."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import structlog
from aiokafka.errors import (
    KafkaConnectionError,
    NodeNotReadyError,
    UnknownTopicOrPartitionError,
)
from pydantic import SecretStr

from api.read_model.store import AWAY_LIMIT_MS
from schemas.topics import (
    BATCH_EVENT,
    DLQ_SUFFIX,
    GROUP_TOPICS,
    LINE_READY,
    MAX_RECORD_BYTES,
    TOPICS,
    Cleanup,
)
from streams import log
from streams.kafka import failpoint
from streams.kafka.admin import TopicState, _drift, _refuse_moved_keys, wanted_topics
from streams.kafka.connection import connection, friendly
from streams.kafka.dead_letters import Brake
from streams.kafka.errors import (
    BrokerUnreachable,
    Fenced,
    KafkaBaseError,
    TooManyDeadLetters,
    TopicMissing,
    TopicsDiffer,
)
from streams.kafka.fence import Fence
from streams.kafka.groups import group_name, member_name
from streams.settings import Settings


def test_plain_settings_name_servers_only() -> None:
    kwargs = connection(Settings(kafka="a:1, b:2"))
    assert kwargs["bootstrap_servers"] == ["a:1", "b:2"]
    assert kwargs["security_protocol"] == "PLAINTEXT"
    assert not {"ssl_context", "sasl_mechanism"} & set(kwargs)


def test_sasl_over_tls_maps_to_the_client() -> None:
    kwargs = connection(
        Settings(
            kafka_security="SASL_SSL",
            kafka_sasl_mechanism="SCRAM-SHA-512",
            kafka_username="ada",
            kafka_password=SecretStr("secret"),
        )
    )
    assert kwargs["security_protocol"] == "SASL_SSL"
    assert isinstance(kwargs["ssl_context"], ssl.SSLContext)
    assert kwargs["ssl_context"].verify_mode is ssl.CERT_REQUIRED
    assert kwargs["sasl_mechanism"] == "SCRAM-SHA-512"
    assert kwargs["sasl_plain_username"] == "ada"
    assert kwargs["sasl_plain_password"] == "secret"


def test_sasl_without_a_password_says_what_to_set() -> None:
    with pytest.raises(KafkaBaseError, match="BACKHAUL_KAFKA_PASSWORD"):
        connection(Settings(kafka_security="SASL_PLAINTEXT", kafka_username="ada"))


def test_a_missing_ca_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(KafkaBaseError, match="TLS files"):
        connection(Settings(kafka_security="SSL", kafka_ca_file=tmp_path / "absent.pem"))


def test_errors_say_what_to_do() -> None:
    settings = Settings(kafka="h:1")
    unreachable = friendly(KafkaConnectionError("x"), settings)
    assert isinstance(unreachable, BrokerUnreachable)
    assert "h:1" in str(unreachable)
    assert "backhaul up" in str(unreachable)
    # A broker that has just died: nobody has refused anything.
    assert isinstance(friendly(NodeNotReadyError("2"), settings), BrokerUnreachable)
    missing = friendly(UnknownTopicOrPartitionError("t"), settings)
    assert isinstance(missing, TopicMissing)
    assert "backhaul topics apply" in str(missing)


def test_names_of_groups_and_members() -> None:
    settings = Settings(topic_prefix="p", instance="7")
    assert group_name(settings, "collector") == "p-collector"
    assert member_name(settings, "collector") == "p-collector-7"


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_member_is_trusted_for_two_thirds_of_the_session() -> None:
    clock = _Clock()
    fence = Fence(15.0, clock)
    with pytest.raises(Fenced):
        fence.check()
    fence.heard(100.0)
    clock.now = 109.9
    fence.check()
    clock.now = 110.1
    with pytest.raises(Fenced):
        fence.check()


async def test_a_silence_of_the_broker_is_waited_out_but_a_lost_membership_is_not() -> None:
    clock = _Clock()
    fence = Fence(15.0, clock)
    fence.heard(100.0)
    clock.now = 120.0
    waiting = asyncio.ensure_future(fence.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    fence.heard(119.0)
    await asyncio.wait_for(waiting, 30)
    fence.lost()
    with pytest.raises(Fenced):
        await fence.wait()


def test_the_brake_trips_on_a_run() -> None:
    brake = Brake(run_limit=3, share=0.5, window=1000)
    for _ in range(3):
        brake.bad()
    brake.good()
    for _ in range(3):
        brake.bad()
    with pytest.raises(TooManyDeadLetters):
        brake.bad()


def test_the_brake_trips_on_a_share_once_the_window_is_full() -> None:
    brake = Brake(run_limit=100, share=0.1, window=100)
    for _ in range(10):
        brake.bad()
        for _ in range(9):
            brake.good()
    brake.good()
    brake.bad()

    def go_on() -> None:
        for _ in range(3):
            brake.good()
            brake.bad()

    with pytest.raises(TooManyDeadLetters):
        go_on()


def test_a_few_bad_records_do_not_trip_the_brake() -> None:
    brake = Brake(run_limit=3, share=0.1, window=100)
    for _ in range(1000):
        brake.bad()
        for _ in range(19):
            brake.good()


def test_every_topic_and_its_dead_letters_are_wanted() -> None:
    wanted = {w.full_name: w for w in wanted_topics(Settings(topic_prefix="p", kafka_replicas=3))}
    assert set(wanted) == {f"p.{t.name}" for t in TOPICS} | {
        f"p.{t.name}{DLQ_SUFFIX}" for t in GROUP_TOPICS
    }
    for topic in wanted.values():
        assert topic.replicas == 3
        assert topic.configs["min.insync.replicas"] == "2"
        assert topic.configs["max.message.bytes"] == str(MAX_RECORD_BYTES)


def test_compacted_topics_keep_tombstones_longer_than_a_read_model_may_be_away() -> None:
    wanted = {w.full_name: w for w in wanted_topics(Settings(topic_prefix="p"))}
    for topic in TOPICS:
        if topic.cleanup is Cleanup.COMPACT:
            configs = wanted[f"p.{topic.name}"].configs
            assert int(configs["delete.retention.ms"]) > AWAY_LIMIT_MS


def test_one_replica_asks_for_no_second() -> None:
    for topic in wanted_topics(Settings(kafka_replicas=1)):
        assert "min.insync.replicas" not in topic.configs


def test_partition_counts_can_be_overridden() -> None:
    wanted = wanted_topics(Settings(), {LINE_READY.name: 24})
    assert {w.partitions for w in wanted if w.topic is LINE_READY} == {24}


def test_a_keyed_topic_with_another_count_is_refused() -> None:
    (event,) = [w for w in wanted_topics(Settings()) if w.topic is BATCH_EVENT]
    moved = TopicState(wanted=event, partitions=5, replicas=3, drift=("5 partitions, not 4",))
    with pytest.raises(TopicsDiffer, match="5 partitions, not 4"):
        _refuse_moved_keys([moved])
    missing = TopicState(wanted=event, partitions=None, replicas=None, drift=("missing",))
    _refuse_moved_keys([missing])


def test_drift_is_said_in_words() -> None:
    (ready,) = [w for w in wanted_topics(Settings()) if w.topic is LINE_READY]
    configs = dict(ready.configs) | {"retention.ms": "1"}
    drift = _drift(ready, 9, 1, configs)
    assert drift[0] == "9 partitions, not 8"
    assert drift[1] == "1 replicas, not 3"
    assert drift[2].startswith("retention.ms=1, not ")
    assert _drift(ready, 8, 3, None) == ()


def test_a_failpoint_ends_the_process_at_its_nth_time() -> None:
    code = (
        "from streams.kafka.failpoint import reach\n"
        "for n in range(5):\n"
        "    reach('other'); print(n, flush=True); reach('here')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"BACKHAUL_FAILPOINT": "here:2", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == failpoint.EXIT_CODE
    assert done.stdout.split() == ["0", "1"]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_the_log_is_on_stderr_and_shows_no_local_variables(log_format: str) -> None:
    code = (
        "import logging, structlog\n"
        "from streams import log\n"
        "from streams.settings import Settings\n"
        f"log.configure(Settings(log_format={log_format!r}), 'collector')\n"
        "def fail(body):\n"
        "    raise ValueError('wrong')\n"
        "try:\n"
        "    fail('secret-' + 'prompt')\n"
        "except ValueError:\n"
        "    structlog.get_logger('x').exception('It failed.', action='it_failed')\n"
        "    logging.getLogger('y').error('Libraries log %s.', 'too')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "secret-prompt" not in done.stderr
    assert "it_failed" in done.stderr
    assert "Libraries log too." in done.stderr
    if log_format == "json":
        for line in done.stderr.splitlines():
            assert json.loads(line)["process"] == "collector"


def test_libraries_never_log_below_info_where_they_would_show_records() -> None:
    root = logging.getLogger()
    before = (root.level, root.handlers[:])
    try:
        log.configure(Settings(log_level="debug"), "test")
        assert logging.getLogger("aiokafka").level >= logging.INFO
        assert logging.getLogger("faust").level >= logging.INFO
    finally:
        root.setLevel(before[0])
        root.handlers[:] = before[1]
        logging.captureWarnings(capture=False)
        structlog.reset_defaults()


def test_a_library_that_repeats_itself_is_passed_once_in_a_while() -> None:
    throttle = log._Throttle()

    def passes(name: str, at: float) -> bool:
        record = logging.LogRecord(name, logging.ERROR, "", 0, "Unable to reach %s", ("x",), None)
        record.created = at
        return throttle.filter(record)

    assert passes("aiokafka.client", 100.0)
    assert not passes("aiokafka.client", 109.0)
    assert passes("aiokafka.client", 111.0)
    assert passes("streams.kafka.role", 100.0)
    assert passes("streams.kafka.role", 100.0)
