"""The typed tables of names: topics, headers, metrics, partitions."""

from __future__ import annotations

import pytest
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st

from schemas import headers, metrics
from schemas.metrics import METRICS, Metric, MetricKind, Metrics
from schemas.partitions import partition_for
from schemas.records import RECORDS
from schemas.topics import COPARTITIONED, GROUP_TOPICS, TOPICS, Cleanup


def test_topics_have_unique_versioned_names_and_a_reason() -> None:
    names = [t.name for t in TOPICS]
    assert len(names) == len(set(names))
    for topic in TOPICS:
        assert topic.name.rpartition(".v")[2].isdigit()
        assert topic.why.endswith(".")
        assert topic.partitions >= 1


def test_deleted_topics_have_a_retention_and_compacted_ones_a_key() -> None:
    for topic in TOPICS:
        if topic.cleanup is Cleanup.DELETE:
            assert topic.retention_s
        else:
            assert topic.retention_s is None
            assert topic.keyed


def test_compacted_topics_are_never_read_by_a_group() -> None:
    assert all(t.cleanup is Cleanup.DELETE for t in GROUP_TOPICS)
    assert set(GROUP_TOPICS) <= set(TOPICS)


def test_copartitioned_topics_have_equal_counts() -> None:
    assert len({t.partitions for t in COPARTITIONED}) == 1


def test_every_record_but_the_table_rows_has_a_topic() -> None:
    on_topics = {r for t in TOPICS for r in t.records}
    assert {r.__name__ for r in set(RECORDS) - on_topics} == {
        "BatchRow",
        "ChunkRow",
        "MeterChunkRow",
    }


@given(st.text(max_size=50), st.integers(1, 64))
def test_our_partition_is_that_of_kafkas_own_clients(key: str, count: int) -> None:
    theirs = DefaultPartitioner()(key.encode(), list(range(count)), list(range(count)))
    assert partition_for(key, count) == theirs


def test_header_names_are_unique() -> None:
    names = [v for k, v in vars(headers).items() if k.isupper()]
    assert len(names) == len(set(names))


def test_metrics_follow_prometheus_conventions() -> None:
    names = [m.name for m in METRICS]
    assert len(names) == len(set(names))
    for metric in METRICS:
        assert metric.name.startswith("backhaul_")
        assert metric.name.endswith("_total") == (metric.kind is MetricKind.COUNTER)
        assert metric.help.endswith(".")
        assert not {"batch_id", "tenant", "line"} & set(metric.labels)


def test_every_metric_of_the_module_is_in_the_table() -> None:
    defined = {v.name for v in vars(metrics).values() if isinstance(v, Metric)}
    assert defined == {m.name for m in METRICS}


def test_every_metric_can_be_made_and_shown() -> None:
    made = Metrics()
    for metric in METRICS:
        instrument = getattr(made, metric.kind.value)(metric)
        assert getattr(made, metric.kind.value)(metric) is instrument
    assert b"backhaul_ready" in made.exposition()


def test_a_metric_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="is a gauge"):
        Metrics().counter(metrics.READY)
