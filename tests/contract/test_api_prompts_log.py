"""Prompts follow from the log alone: rebuilt, compacted, cleaned up, and kept out of logs."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.files.cleanup import Cleanup, CleanupTimes
from api.log_fake import FakeLog
from api.read_model.prompt_queries import PromptQueries
from api.read_model.schema import TOPICS
from api.read_model.store import ReadModelStore
from schemas.records import BatchCreate, PinnedPrompt, PromptHead, PromptVersion, PromptVersionRef
from schemas.topics import BATCH_COMMAND, PROMPT
from streams.domain.clock import ManualClock
from streams.domain.prompts.registry import Registry, head_key, version_key
from streams.kafka.reader import ReadRecord
from tests.support.gateway import GatewayUnderTest, running_gateway
from tests.support.prompts_api import PromptsApi
from tests.support.prompts_told import SECRET

TIMES = CleanupTimes()
NOW = 1_700_000_000_000


async def story(prompts: PromptsApi) -> None:
    """Prompts in every state."""
    await prompts.create("plain", "{{a}}", description="d")
    await prompts.create("many", "v1 {{a}}")
    for number in range(2, 6):
        await prompts.add("many", f"v{number} {{{{b{number}}}}}")
    await prompts.publish("many", 4)
    await prompts.create("gone")
    await prompts.delete("gone")
    await prompts.create("again", "old")
    await prompts.delete("again")
    await prompts.create("again", "new {{c}}")
    await prompts.create("withdrawn")
    await prompts.publish("withdrawn", None)
    await prompts.call("PATCH", "/plain", description="changed")


async def shown(prompts: PromptsApi) -> list[Any]:
    """All that callers can see."""
    listed = (await prompts.get()).body["data"]
    found: list[Any] = [listed]
    for prompt in listed:
        one = await prompts.get(f"/{prompt['slug']}")
        found += [one.body, one.etag, (await prompts.get(f"/{prompt['slug']}/versions")).body]
    return found


def live_keys(log: FakeLog) -> set[str]:
    """Keys of the records that a compacted topic would still have."""
    last = {r.key: r.record for r in log.of(PROMPT)}
    return {key for key, record in last.items() if record is not None}


def needed_keys(log: FakeLog) -> set[str]:
    """Keys of the current heads and of the texts that they list."""
    registry, slugs = Registry(), set()
    for read in log.of(PROMPT):
        assert read.record is None or isinstance(read.record, PromptHead | PromptVersion)
        registry.apply(read.key, read.record)
        if read.record is not None:
            slugs.add((read.record.tenant, read.record.slug))
    needed = set()
    for tenant, slug in slugs:
        head = registry.head(tenant, slug)
        if head is not None:
            needed.add(head_key(tenant, slug, head.revision, head.write_id))
            needed |= {version_key(tenant, slug, ref.version_id) for ref in head.versions}
    return needed


def compacted(log: FakeLog, *, tombstones: bool) -> FakeLog:
    """The log as Kafka's compaction leaves it: of each key the last record, in their order."""
    after = FakeLog()
    for place, records in log.records.items():
        last = {r.key: r.offset for r in records}
        kept = [r for r in records if last[r.key] == r.offset]
        after.records[place] = [
            replace(r, offset=number)
            for number, r in enumerate(r for r in kept if tombstones or r.record is not None)
        ]
    return after


async def test_a_restart_and_a_rebuild_show_the_same_prompts(tmp_path: Path) -> None:
    path = tmp_path / "g" / "read-model.sqlite"
    async with running_gateway(read_model=path) as gateway:
        await story(PromptsApi(gateway))
        before = await shown(PromptsApi(gateway))
        log = gateway.log
    async with running_gateway(log=log, read_model=path) as gateway:
        assert await shown(PromptsApi(gateway)) == before
        made = await PromptsApi(gateway).create("gone")
        assert made.body["latest_version"] == 2
        before = await shown(PromptsApi(gateway))
    async with running_gateway(log=log) as gateway:
        assert await shown(PromptsApi(gateway)) == before


@pytest.mark.parametrize("tombstones", [True, False])
async def test_after_clean_up_and_compaction_the_same_prompts_are_read(
    cleaned: Cleaned, *, tombstones: bool
) -> None:
    gateway, prompts = cleaned.gateway, PromptsApi(cleaned.gateway)
    await story(prompts)
    before = await shown(prompts)
    await cleaned.pass_after(TIMES.orphan_s + 1)
    assert await shown(prompts) == before
    assert live_keys(gateway.log) == needed_keys(gateway.log)
    async with running_gateway(log=compacted(gateway.log, tombstones=tombstones)) as rebuilt:
        again = PromptsApi(rebuilt)
        assert await shown(again) == before
        made = await again.create("gone")
        assert (made.etag, made.body["latest_version"]) == ('"3"', 2)


class Cleaned:
    """A gateway whose clock stands still until it is moved, and its clean-up."""

    def __init__(self, gateway: GatewayUnderTest, clock: ManualClock) -> None:
        self.gateway = gateway
        self.clock = clock
        self.cleanup = Cleanup(gateway.gateway, TIMES)

    async def pass_after(self, seconds: float) -> None:
        """One pass when so much time has gone by."""
        # In steps, each heard of, or the gateway would take the log for another.
        while seconds > 0:
            step = min(seconds, 3600.0)
            self.clock.advance(step)
            seconds -= step
            await self.gateway.log.send(BATCH_COMMAND, "batch_x", A_COMMAND)
            await self.gateway.gateway.sync()
        await self.cleanup.once()

    def tombstones(self) -> set[str]:
        return {r.key for r in self.gateway.log.of(PROMPT) if r.record is None}

    def keys(self, kind: type[PromptHead | PromptVersion]) -> list[str]:
        return [r.key for r in self.gateway.log.of(PROMPT) if isinstance(r.record, kind)]


A_COMMAND = BatchCreate(
    command_id="c",
    batch_id="batch_x",
    tenant="nobody",
    at_ms=NOW,
    endpoint="/v1/embeddings",
    input_file_id="file-x",
    completion_window="24h",
    window_s=1,
    metadata={},
    request_hash="",
)


@pytest.fixture
async def cleaned() -> AsyncIterator[Cleaned]:
    """A gateway on a clock of its own."""
    clock = ManualClock()
    async with running_gateway(clock=clock) as gateway:
        yield Cleaned(gateway, clock)


async def test_superseded_heads_end_after_a_while_and_the_current_one_never(
    cleaned: Cleaned,
) -> None:
    prompts = PromptsApi(cleaned.gateway)
    await prompts.create("s")
    await prompts.add("s")
    await prompts.publish("s", 2)
    one, two, three = cleaned.keys(PromptHead)
    await cleaned.pass_after(TIMES.grace_s - 1)
    assert cleaned.tombstones() == set()
    await cleaned.pass_after(1)
    assert cleaned.tombstones() == {one, two}
    await cleaned.pass_after(30 * 3600)
    assert cleaned.tombstones() == {one, two}
    await prompts.delete("s")
    await cleaned.pass_after(TIMES.grace_s)
    assert cleaned.tombstones() == {one, two, three}
    await cleaned.pass_after(TIMES.orphan_s)
    # The head of a deleted prompt stays: it holds the numbers that must not come again.
    assert cleaned.tombstones() == {one, two, three, *cleaned.keys(PromptVersion)}
    assert len(live_keys(cleaned.gateway.log)) == 1


async def test_a_text_that_no_head_lists_yet_is_given_a_day(cleaned: Cleaned) -> None:
    prompts = PromptsApi(cleaned.gateway)
    cleaned.gateway.log.lose_answer = lambda read: isinstance(read.record, PromptVersion)
    assert (await prompts.create("s")).status == 503
    cleaned.gateway.log.lose_answer = lambda _: False
    (orphan,) = cleaned.keys(PromptVersion)
    await prompts.create("s")
    await cleaned.pass_after(TIMES.orphan_s - 1)
    assert cleaned.tombstones() == set()
    await cleaned.pass_after(1)
    assert cleaned.tombstones() == {orphan}
    assert (await prompts.get("/s/versions/1")).status == 200


async def test_a_head_that_lost_its_race_ends_and_the_winner_stays(cleaned: Cleaned) -> None:
    prompts = PromptsApi(cleaned.gateway)
    made = await prompts.create("s")
    winner = cleaned.gateway.log.of(PROMPT)[-1].record
    assert isinstance(winner, PromptHead)
    loser = msgspec.structs.replace(winner, write_id="loser", description="loser", versions=())
    await cleaned.gateway.log.send(PROMPT, head_key("acme", "s", 1, "loser"), loser)
    await cleaned.pass_after(TIMES.orphan_s)
    assert cleaned.tombstones() == {"acme/s/1/loser"}
    assert (await prompts.get("/s")).body == made.body


async def test_two_clean_ups_at_once_end_the_same_records(cleaned: Cleaned) -> None:
    prompts = PromptsApi(cleaned.gateway)
    async with running_gateway(log=cleaned.gateway.log, clock=cleaned.clock) as second:
        await story(prompts)
        before = await shown(prompts)
        await cleaned.pass_after(TIMES.orphan_s)
        other = Cleanup(second.gateway, TIMES)
        await asyncio.gather(cleaned.cleanup.once(), other.once())
        assert await shown(prompts) == before
        assert await shown(PromptsApi(second)) == before
        assert live_keys(cleaned.gateway.log) == needed_keys(cleaned.gateway.log)


async def test_a_batch_shows_its_pins_and_warnings(gateway: GatewayUnderTest) -> None:
    batch_id = await gateway.create()
    batches = gateway.client().batches
    fresh = (await batches.retrieve(batch_id)).to_dict(exclude_unset=False)
    assert (fresh["prompts"], fresh["warnings"]) == ([], None)
    pins = (
        PinnedPrompt(slug="s", version=2, lines=7),
        PinnedPrompt(slug="s", version=3, lines=1),
    )
    await gateway.show(batch_id, prompts=pins, unused_variables=4)
    batch = (await batches.retrieve(batch_id)).to_dict()
    assert batch["prompts"] == [
        {"slug": "s", "version": 2, "lines": 7},
        {"slug": "s", "version": 3, "lines": 1},
    ]
    assert batch["warnings"] == {"unused_variables": 4}


def test_nothing_of_a_prompt_is_ever_logged() -> None:
    # In a process of its own, which logs as in production, at the level that tells most.
    told = subprocess.run(
        [sys.executable, "-m", "tests.support.prompts_told"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    said = told.stdout + told.stderr
    assert {json.loads(line).get("action") for line in told.stderr.splitlines()} >= {
        *("prompt_changed", "gateway_listening", "request_failed"),
    }
    assert SECRET not in said


# The fold in SQL and the fold in memory.

Step = tuple[str, PromptHead | PromptVersion | None]
IDS = ("v1", "v2", "v3")


def a_head(slug: str, revision: int, write: str, listed: list[str], *, deleted: bool) -> Step:
    refs = tuple(
        PromptVersionRef(number=n, version_id=v, created_at_ms=1, size_bytes=5, request_hash="")
        for n, v in enumerate(listed, 1)
    )
    head = PromptHead(
        tenant="acme",
        slug=slug,
        revision=revision,
        write_id=write,
        prompt_id=f"prompt_{slug}",
        request_hash="",
        description=f"{revision}{write}",
        created_at_ms=1,
        updated_at_ms=1,
        published=None,
        latest=len(refs),
        versions=() if deleted else refs,
        deleted_at_ms=1 if deleted else None,
    )
    return head_key("acme", slug, revision, write), head


def a_text(slug: str, version_id: str) -> Step:
    text = PromptVersion(
        tenant="acme",
        slug=slug,
        version_id=version_id,
        messages=f"[{version_id!r}]".encode(),
        model_config=b"{}",
    )
    return version_key("acme", slug, version_id), text


slugs = st.sampled_from(("a", "b"))
steps = st.lists(
    st.one_of(
        st.builds(
            a_head,
            slugs,
            st.integers(1, 4),
            st.sampled_from(("w1", "w2")),
            st.lists(st.sampled_from(IDS), unique=True),
            deleted=st.booleans(),
        ),
        st.builds(a_text, slugs, st.sampled_from(IDS)),
    ),
    max_size=25,
)


@given(steps, st.integers(1, 5))
async def test_the_rows_say_what_the_fold_in_memory_says_and_know_what_is_not_needed(
    told: list[Step], poll: int
) -> None:
    # No two records share a key, but one may be repeated.
    first = dict(reversed(told))
    told = [(key, first[key]) for key, _ in told]
    store = await ReadModelStore.open(None, identity="log", clock=ManualClock(NOW))
    queries, registry = PromptQueries(store.reader), Registry()
    reads = [ReadRecord(PROMPT, 0, n, NOW + n, key, r) for n, (key, r) in enumerate(told)]
    current: dict[str, list[str]] = {"a": [], "b": []}
    counted: dict[str, str] = {}
    for start in range(0, len(reads), poll):
        some = reads[start : start + poll]
        await store.apply(some, {(t.name, 0): start + len(some) for t in TOPICS}, NOW)
        for read in some:
            assert read.record is None or isinstance(read.record, PromptHead | PromptVersion)
            before = {slug: registry.head("acme", slug) for slug in current}
            registry.apply(read.key, read.record)
            if isinstance(read.record, PromptHead):
                won = registry.head("acme", read.record.slug) is not before[read.record.slug]
                counted.setdefault(read.key, "won" if won else "lost")
    needed = set()
    for slug in current:
        head = registry.head("acme", slug)
        assert await queries.head("acme", slug) == head
        for ref in () if head is None else head.versions:
            text = await queries.text("acme", slug, ref.version_id)
            found = registry.resolve("acme", slug, ref.number)
            assert text == getattr(found, "text", None)
            needed.add(version_key("acme", slug, ref.version_id))
        if head is not None:
            needed.add(head_key("acme", slug, head.revision, head.write_id))
    later = NOW + len(reads)
    garbage = set(await queries.garbage(heads_ms=later, texts_ms=later, limit=1000))
    # A text that was listed and never seen may be among it: its tombstone does no harm.
    assert garbage & {key for key, _ in told} == {key for key, _ in told} - needed
    assert not garbage & needed
    for key, fate in counted.items():
        assert await queries.fate(key) == fate
    ended = [ReadRecord(PROMPT, 0, 99, later, key, None) for key in sorted(garbage)]
    heads = [await queries.head("acme", slug) for slug in current]
    await store.apply(ended, {}, NOW)
    assert await queries.garbage(heads_ms=later, texts_ms=later, limit=1000) == []
    assert [await queries.head("acme", slug) for slug in current] == heads
    await store.close()


async def test_a_head_that_lost_ends_before_the_head_that_it_lost_to() -> None:
    # Clocks of gateways differ: the loser was written a little "later" than what came after it.
    won, lost = (a_head("a", 1, w, ["v1"], deleted=w == "w2") for w in ("w1", "w2"))
    told = [(won, NOW), (lost, NOW + 2), (a_head("a", 2, "w1", ["v1"], deleted=False), NOW + 1)]
    store = await ReadModelStore.open(None, identity="log", clock=ManualClock(NOW))
    reads = [ReadRecord(PROMPT, 0, n, at, *step) for n, (step, at) in enumerate(told)]
    await store.apply(reads, {}, NOW)
    later = NOW + 3
    ended = await PromptQueries(store.reader).garbage(heads_ms=later, texts_ms=later, limit=9)
    assert ended == [lost[0], won[0]]
    await store.close()
