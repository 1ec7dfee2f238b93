"""Writers of prompts that race, repeat themselves, or never hear what became of a write."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from schemas.records import PromptHead, PromptVersion
from schemas.topics import PROMPT
from streams.domain.prompts.registry import head_key
from tests.support.gateway import TIMEOUTS, GatewayUnderTest, running_gateway
from tests.support.prompts_api import Answer, PromptsApi, says
from tests.support.waiting import eventually

KEY = {"Idempotency-Key": "k1"}


@pytest.fixture
async def prompts(gateway: GatewayUnderTest) -> PromptsApi:
    """The prompts of 'acme'."""
    return PromptsApi(gateway)


@pytest.fixture
async def rivals() -> AsyncIterator[tuple[PromptsApi, PromptsApi]]:
    """The prompts of 'acme' through two gateways on one log."""
    async with (
        running_gateway() as first,
        running_gateway(log=first.log) as second,
    ):
        yield PromptsApi(first), PromptsApi(second)


def heads(gateway: GatewayUnderTest) -> list[PromptHead]:
    return [r.record for r in gateway.log.of(PROMPT) if isinstance(r.record, PromptHead)]


def texts(gateway: GatewayUnderTest) -> list[PromptVersion]:
    return [r.record for r in gateway.log.of(PROMPT) if isinstance(r.record, PromptVersion)]


async def at_once(calls: list[Any], concurrency: int = 8) -> list[Answer]:
    """All calls, some at a time."""
    slots = asyncio.Semaphore(concurrency)

    async def one(call: Any) -> Answer:
        async with slots:
            answer: Answer = await call
            return answer

    return list(await asyncio.gather(*map(one, calls)))


async def test_two_gateways_that_race_lose_no_version_and_number_them_without_gap(
    rivals: tuple[PromptsApi, PromptsApi],
) -> None:
    await rivals[0].create("s", "text 0")
    adding = [rivals[n % 2].add("s", f"text {n}") for n in range(1, 301)]
    answers = await at_once(adding)
    assert {a.status for a in answers} == {200}
    assert sorted(a.body["version"] for a in answers) == list(range(2, 302))
    assert len({a.etag for a in answers}) == 300
    for prompts in rivals:
        shown = (await prompts.get("/s")).body["versions"]
        assert [v["version"] for v in shown] == list(range(1, 302))
    for answer in random.Random(7).sample(answers, 40):
        number = answer.body["version"]
        for prompts in rivals:
            found = await prompts.get(f"/s/versions/{number}")
            assert found.body["messages"] == answer.body["messages"]


async def test_changes_of_every_kind_that_race_all_count(
    rivals: tuple[PromptsApi, PromptsApi],
) -> None:
    await rivals[0].create("s")
    await rivals[1].add("s")
    calls: list[Any] = []
    for number in range(60):
        prompts = rivals[number % 2]
        calls += [
            prompts.call("PATCH", "/s", description=f"d{number}"),
            prompts.publish("s", number % 2 + 1),
            prompts.add("s", f"t{number}"),
        ]
    random.Random(3).shuffle(calls)
    answers = await at_once(calls, 12)
    assert {a.status for a in answers} == {200}
    changed = {int(a.etag.strip('"')) for a in answers}
    # Each change has a revision of its own; publishing what is published changes nothing.
    assert max(changed) >= 2 + 120
    described = [
        a for a in answers if "description" in a.body and "d" in str(a.body["description"])
    ]
    assert described
    final = (await rivals[0].get("/s")).body
    assert final == (await rivals[1].get("/s")).body
    assert final["latest_version"] == 62
    last = max(answers, key=lambda a: int(a.etag.strip('"')))
    assert (await rivals[0].get("/s")).etag == last.etag


async def test_of_creates_that_race_one_wins_and_the_others_are_told(
    rivals: tuple[PromptsApi, PromptsApi],
) -> None:
    answers = await at_once([rivals[n % 2].create("s", f"t{n}") for n in range(20)], 20)
    won = [a for a in answers if a.status == 200]
    assert len(won) == 1
    assert {a.error["code"] for a in answers if a is not won[0]} == {"prompt_exists"}
    assert (await rivals[1].get("/s")).body == won[0].body


async def test_of_changes_with_one_etag_exactly_one_is_made(
    rivals: tuple[PromptsApi, PromptsApi],
) -> None:
    made = await rivals[0].create("s")
    held = {"If-Match": made.etag}
    calls = [
        rivals[n % 2].call("PATCH", "/s", headers=held, description=f"d{n}") for n in range(30)
    ]
    answers = await at_once(calls, 30)
    won = [a for a in answers if a.status == 200]
    assert len(won) == 1
    lost = {a.refusal for a in answers if a.status != 200}
    assert lost == {(412, "precondition_failed", "If-Match")}
    assert (await rivals[1].get("/s")).body == won[0].body


async def test_deletes_and_creates_that_race_never_use_a_number_or_an_etag_twice(
    rivals: tuple[PromptsApi, PromptsApi],
) -> None:
    async def remade(prompts: PromptsApi, number: int) -> list[Answer]:
        made = await prompts.create("s", f"text {number}")
        added = await prompts.add("s", f"more {number}")
        await prompts.delete("s")
        return [made, added]

    rounds = await asyncio.gather(*(remade(rivals[n % 2], n) for n in range(40)))
    good = [a for made in rounds for a in made if a.status == 200]
    assert {a.status for made in rounds for a in made} <= {200, 404, 409}
    numbers = [a.body.get("version") or a.body["latest_version"] for a in good]
    assert len(set(numbers)) == len(numbers)
    assert len({a.etag for a in good}) == len(good)
    last = await rivals[0].create("s", "last")
    if last.status == 200:
        assert last.body["latest_version"] == max(numbers) + 1


async def test_a_writer_that_is_overtaken_after_it_won_does_not_write_again(
    gateway: GatewayUnderTest, prompts: PromptsApi
) -> None:
    await prompts.create("s")
    gateway.log.held = True
    adding = asyncio.create_task(prompts.add("s", "mine"))
    await eventually(lambda: len(heads(gateway)) == 2)
    ours = heads(gateway)[-1]
    later = msgspec.structs.replace(ours, revision=3, write_id="other", description="later")
    await gateway.log.send(PROMPT, head_key("acme", "s", 3, "other"), later)
    gateway.log.held = False
    gateway.log.wake()
    added = await adding
    assert (added.status, added.body["version"], added.etag) == (200, 2, '"2"')
    shown = await prompts.get("/s")
    assert (shown.body["description"], shown.body["latest_version"]) == ("later", 2)
    assert len(heads(gateway)) == 3


@pytest.mark.parametrize("if_match", [False, True])
async def test_a_writer_that_lost_decides_anew(
    gateway: GatewayUnderTest, prompts: PromptsApi, *, if_match: bool
) -> None:
    made = await prompts.create("s")
    before = heads(gateway)[-1]
    gateway.log.held = True
    headers = {"If-Match": made.etag} if if_match else {}
    # Both have seen revision 1; the other's revision 2 comes first in the log.
    other = msgspec.structs.replace(before, revision=2, write_id="other", description="other's")
    held = asyncio.create_task(prompts.add("s", "mine", headers=headers))
    await eventually(lambda: len(texts(gateway)) == 2)
    log = gateway.log.records[PROMPT.name, 0]
    await eventually(lambda: len(heads(gateway)) == 2)
    mine = log.pop()
    await gateway.log.send(PROMPT, head_key("acme", "s", 2, "other"), other)
    assert isinstance(mine.record, PromptHead)
    await gateway.log.send(PROMPT, mine.key, mine.record)
    gateway.log.held = False
    gateway.log.wake()
    answer = await held
    shown = (await prompts.get("/s")).body
    assert shown["description"] == "other's"
    if if_match:
        assert answer.refusal == (412, "precondition_failed", "If-Match")
        assert answer.headers["x-should-retry"] == "false"
        assert shown["latest_version"] == 1
    else:
        assert (answer.status, answer.etag, answer.body["version"]) == (200, '"3"', 2)
        assert shown["latest_version"] == 2
        # The text of the version was sent once, before the first try.
        assert len(texts(gateway)) == 2


async def test_if_match_takes_lists_and_stars_but_no_weak_or_other_tags(
    prompts: PromptsApi,
) -> None:
    etag = (await prompts.create("s")).etag
    for wrong in ('"9"', f"W/{etag}", '"x", "y"', '""'):
        refused = await prompts.publish("s", None, headers={"If-Match": wrong})
        assert refused.refusal == (412, "precondition_failed", "If-Match")
    for broken in ("1", "", "*, *", "'1'", '"1" "2"', "x" * 100):
        refused = await prompts.delete("s", headers={"If-Match": broken})
        assert refused.refusal == (400, "invalid_value", "If-Match")
    for right in ("{}", '"9", {}', "*"):
        etag = (await prompts.add("s", headers={"If-Match": right.format(etag)})).etag
    assert etag == '"4"'
    assert (await prompts.delete("s", headers={"If-Match": '"3"'})).status == 412
    assert (await prompts.delete("s", headers={"If-Match": etag})).status == 200
    gone = await prompts.delete("s", headers={"If-Match": "*"})
    assert gone.refusal == (404, "prompt_not_found", "slug")


@pytest.mark.parametrize("kind", ["create", "add"])
async def test_the_same_key_and_request_give_the_same_answer(
    gateway: GatewayUnderTest, prompts: PromptsApi, kind: str
) -> None:
    if kind == "add":
        await prompts.create("s")
    call = prompts.create if kind == "create" else prompts.add
    config = {"temperature": 0.5, "model": "m1"}
    first = await call("s", "text", model_config=config, headers=KEY)
    count = len(heads(gateway))
    again = await call("s", "text", model_config=dict(reversed(config.items())), headers=KEY)
    assert (again.status, again.body, again.etag) == (200, first.body, first.etag)
    assert len(heads(gateway)) == count
    for text, other in (("text", {}), ("other", config)):
        refused = await call("s", text, model_config=other, headers=KEY)
        assert refused.refusal == (409, "idempotency_conflict", "Idempotency-Key")
        assert refused.headers["x-should-retry"] == "false"
    assert len(heads(gateway)) == count


async def test_a_key_belongs_to_one_tenant_and_a_versions_key_to_one_prompt(
    gateway: GatewayUnderTest, prompts: PromptsApi
) -> None:
    first = await prompts.create("s", headers=KEY)
    refused = await prompts.create("t", headers=KEY)
    assert refused.refusal == (409, "idempotency_conflict", "Idempotency-Key")
    theirs = await PromptsApi(gateway, "rival").create("s", "other", headers=KEY)
    assert theirs.status == 200
    assert theirs.body["id"] != first.body["id"]
    await prompts.create("t")
    added = [await prompts.add(slug, f"of {slug}", headers=KEY) for slug in ("s", "t")]
    assert [(a.status, a.body["version"]) for a in added] == [(200, 2), (200, 2)]


async def test_a_create_repeated_after_the_prompt_was_deleted_does_not_bring_it_back(
    prompts: PromptsApi,
) -> None:
    await prompts.create("s", headers=KEY)
    await prompts.delete("s")
    refused = await prompts.create("s", headers=KEY)
    assert refused.refusal == (409, "idempotency_conflict", "Idempotency-Key")
    assert (await prompts.get("/s")).status == 404


async def test_a_repeat_shows_the_prompt_as_it_is_now(prompts: PromptsApi) -> None:
    await prompts.create("s", headers=KEY)
    await prompts.add("s", "v2", headers=KEY)
    published = await prompts.publish("s", 2)
    assert (await prompts.create("s", headers=KEY)).body == published.body
    added = await prompts.add("s", "v2", headers=KEY)
    assert (added.body["version"], added.body["published"]) == (2, True)


async def test_repeats_that_race_agree_on_one_prompt_and_one_version(
    rivals: tuple[PromptsApi, PromptsApi],
) -> None:
    made = await at_once([rivals[n % 2].create("s", headers=KEY) for n in range(12)], 12)
    assert {a.status for a in made} == {200}
    assert len({a.body["id"] for a in made}) == 1
    added = await at_once([rivals[n % 2].add("s", "v2", headers=KEY) for n in range(12)], 12)
    assert {(a.status, a.body["version"]) for a in added} == {(200, 2)}
    assert (await rivals[0].get("/s")).etag == '"2"'


async def test_an_answer_that_was_lost_is_given_to_the_repeat(
    gateway: GatewayUnderTest, prompts: PromptsApi
) -> None:
    for call, number in ((prompts.create, 1), (prompts.add, 2)):
        gateway.log.lose_answer = lambda read: isinstance(read.record, PromptHead)
        lost = await call("s", "text", headers=KEY)
        assert (lost.status, lost.headers["Retry-After"]) == (503, "1")
        gateway.log.lose_answer = lambda _: False
        again = await call("s", "text", headers=KEY)
        assert again.status == 200
        shown = (await prompts.get("/s")).body
        assert (shown["latest_version"], len(shown["versions"])) == (number, number)
        assert len(heads(gateway)) == number


async def test_a_text_whose_answer_was_lost_is_sent_again_under_another_key(
    gateway: GatewayUnderTest, prompts: PromptsApi
) -> None:
    gateway.log.lose_answer = lambda read: isinstance(read.record, PromptVersion)
    assert (await prompts.create("s", headers=KEY)).status == 503
    gateway.log.lose_answer = lambda _: False
    assert (await prompts.create("s", headers=KEY)).status == 200
    assert len({r.key for r in gateway.log.of(PROMPT)}) == 3
    assert (await prompts.get("/s/versions/1")).body["messages"] == says("Say {{it}}.")


async def test_a_write_that_is_not_read_back_in_time_is_answered_when_repeated() -> None:
    async with running_gateway(timeouts=replace(TIMEOUTS, read_back_s=0.1)) as gateway:
        prompts = PromptsApi(gateway)
        await prompts.create("s")
        gateway.log.held = True
        assert (await prompts.add("s", "v2", headers=KEY)).status == 503
        gateway.log.held = False
        gateway.log.wake()
        again = await prompts.add("s", "v2", headers=KEY)
        assert (again.status, again.body["version"]) == (200, 2)
        assert len(heads(gateway)) == 2


async def test_while_the_log_is_away_writes_are_refused_and_reads_go_on(
    gateway: GatewayUnderTest, prompts: PromptsApi
) -> None:
    made = await prompts.create("s")
    gateway.log.unreachable = True
    for call in (prompts.create("t"), prompts.add("s"), prompts.delete("s")):
        refused = await call
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
    assert (await prompts.get("/s")).body == made.body
    assert (await prompts.render("s", variables={"it": 1})).status == 200
    assert (await prompts.get("/t")).status == 503


@pytest.mark.parametrize("key", ["", "  ", "k" * 256])
async def test_what_cannot_be_an_idempotency_key_is_refused(prompts: PromptsApi, key: str) -> None:
    refused = await prompts.create("s", headers={"Idempotency-Key": key})
    assert (refused.status, refused.error["param"]) == (400, "idempotency_key")
