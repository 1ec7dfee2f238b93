"""Names of tenants' topics, which say whose they are."""

from __future__ import annotations

import pytest

from schemas.topics import BATCH_IN, BATCH_OUT, TOPICS


@pytest.mark.parametrize("tenant", ["acme", "A-1_b", "v1"])
def test_a_tenants_topic_says_whose_it_is(tenant: str) -> None:
    assert BATCH_IN.tenant("bh", BATCH_IN.of(tenant).full_name("bh")) == tenant


@pytest.mark.parametrize(
    "full_name",
    [
        BATCH_OUT.of("acme").full_name("bh"),
        BATCH_IN.of("acme").full_name("other"),
        "bh.batch-in.acme.v2",
        "bh.batch-in.acme.v1.dlq",
        "bh.batch-in.a.b.v1",
        "bhxbatch-in.acme.v1",
        "bh.batch-in..v1",
        *(topic.full_name("bh") for topic in TOPICS),
    ],
)
def test_no_other_topic_is_taken_for_a_tenants(full_name: str) -> None:
    assert BATCH_IN.tenant("bh", full_name) is None
