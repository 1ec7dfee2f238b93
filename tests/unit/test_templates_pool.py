"""Lines that only the sandbox can render have pools of their own, so that they stall no others."""

from __future__ import annotations

import asyncio
import json

from schemas.records import ObjectRef, OutcomeKind, PromptVersion
from streams.adapters.inference_fake import Hang
from streams.adapters.object_store_fake import FakeObjectStore
from streams.controller.input_lines import InputLines, Source
from streams.controller.routes import Routes
from streams.domain.intake.intake import Accepted, Intake, Rules
from streams.domain.plan import PlanBuilder, read_header, read_rows, rows_range
from streams.domain.prompts.registry import Resolved
from streams.domain.prompts.template import RenderTimeout
from streams.domain.upstreams import parse_upstreams, templates_pool
from tests.support.prompts import book, mixed_jsonl, prompt_line
from tests.support.worker_bench import Bench, lines, until
from tests.support.worker_prompts import PLAIN, ask, pin, planned, user

SANDBOXED = pin(user("{% if text %}{{ text }}{% endif %}"), model="small")
TEMPLATES = templates_pool("a")


def test_intake_flags_the_lines_that_wait_for_the_sandbox() -> None:
    shelf = book()

    def resolve(slug: str, version: int | None) -> Resolved:
        number = version or shelf.published[slug]
        made = shelf.versions[slug][number - 1]
        text = PromptVersion(
            tenant="t",
            slug=slug,
            version_id=f"{slug}{number}",
            messages=json.dumps(made.messages).encode(),
            model_config=json.dumps(made.model_config).encode(),
        )
        return Resolved(number, text)

    styled = {"name": "N", "formal": True, "items": [], "note": None}
    given = [
        prompt_line("a", "summarize", {"text": "t", "language": "x"}),
        prompt_line("b", "styled", styled),
        {**prompt_line("c", "x", {}), "body": {"model": "m", "messages": []}},
        prompt_line("d", "styled", styled),
    ]
    intake = Intake(Rules("/v1/chat/completions", lambda _: True, prompts=resolve))
    intake.feed(mixed_jsonl(given))
    verdict = intake.finish()
    assert isinstance(verdict, Accepted)
    offset, length = rows_range(0, read_header(verdict.plan))
    rows = read_rows(verdict.plan[offset : offset + length])
    assert [(row.pin, row.sandboxed) for row in rows] == [
        (1, False),
        (2, True),
        (0, False),
        (2, True),
    ]


def test_their_lanes_follow_those_of_the_models() -> None:
    table = parse_upstreams(
        {"upstreams": [{"name": "u", "base_url": "http://h/v1", "models": {"a": {}, "b": {}}}]}
    )
    pools, lanes = Routes(table).of(("a", "b"), prompts=True)
    assert pools == (("u",), ("u#templates",))
    assert lanes == (0, 0, 1, 1)
    assert Routes(table).of(("a", "b")) == ((("u",),), (0, 0))


async def test_each_lane_reads_its_own_rows() -> None:
    store, builder = FakeObjectStore(), PlanBuilder()
    for number in range(6):
        builder.add(number, 1, number % 2, 1, sandboxed=number >= 4)
    plan = builder.build()
    await store.put("plan", plan)
    ref = ObjectRef(key="plan", size_bytes=len(plan))
    source = Source(ref, ref, 6, (0, 0, 1, 1), models=2)
    reader = InputLines(store, 4096)
    found = [[at.line for at in (await reader.rows(source, lane, 0, 6))[0]] for lane in (0, 1)]
    assert found == [[0, 1, 2, 3], [4, 5]]


async def test_lines_that_wait_for_the_sandbox_take_no_place_and_no_credit_of_others() -> None:
    bench = Bench(limit=4)
    pins = await planned(bench, PLAIN, SANDBOXED)
    bench.renderer.gate.clear()
    before = bench.worker.pools["a"].credits()
    bench.take(*(ask(n, 2, variables={"text": "x"}) for n in range(40)), pins=pins, pool=TEMPLATES)
    await until(lambda: len(bench.renderer.asked) == 4)
    assert (bench.held("a"), bench.worker.pools["a"].credits()) == (0, before)
    bench.take(*lines(*range(100, 120)), offset=1, batch="b2")
    await until(lambda: bench.finished == [1])
    bench.renderer.error = RenderTimeout()
    bench.renderer.gate.set()
    await until(lambda: sorted(bench.finished) == [0, 1])
    assert bench.held(TEMPLATES) == 0


async def test_once_rendered_they_take_their_turn_within_the_upstreams_limit() -> None:
    bench = Bench(lambda _path, _body: Hang(), limit=4)
    bench.renderer.answer = lambda _variables: ["rendered"]
    pins = await planned(bench, PLAIN, SANDBOXED)
    bench.take(*lines(*range(3)), batch="b2")
    bench.take(*(ask(n, 2, variables={"text": "x"}) for n in range(9)), pins=pins, pool=TEMPLATES)
    await until(lambda: bench.requests() == 4)
    await asyncio.sleep(0.01)
    assert (bench.requests(), bench.worker.pools["a"].running) == (4, 4)
    bench.worker.end("b2")
    await until(lambda: bench.requests() == 7)
    assert bench.worker.pools["a"].running == 4


async def test_the_end_of_their_batch_frees_the_places_that_they_wait_for() -> None:
    bench = Bench(lambda _path, _body: Hang(), limit=2)
    bench.renderer.answer = lambda _variables: ["rendered"]
    pins = await planned(bench, PLAIN, SANDBOXED)
    bench.take(*(ask(n, 2, variables={"text": "x"}) for n in range(9)), pins=pins, pool=TEMPLATES)
    await until(lambda: bench.worker.pools["a"].running == 2)
    bench.worker.end("b1")
    await until(lambda: bench.worker.pools["a"].running == 0)
    assert (bench.held(TEMPLATES), bench.outcomes) == (0, [])
    bench.take(*lines(1, 2), offset=5, batch="b2")
    await until(lambda: bench.worker.pools["a"].running == 2)


async def test_lines_of_a_revoked_partition_that_wait_for_a_place_do_not_begin() -> None:
    bench = Bench(lambda _path, _body: Hang(), limit=2)
    bench.renderer.answer = lambda _variables: ["rendered"]
    pins = await planned(bench, PLAIN, SANDBOXED)
    bench.take(*lines(*range(2)), batch="b2")
    asked = [ask(n, 2, variables={"text": "x"}) for n in range(2)]
    bench.take(*asked, pins=pins, pool=TEMPLATES, partition=1, offset=1)
    await until(lambda: len(bench.renderer.asked) == 2)
    bench.worker.revoked({1})
    bench.worker.end("b2")
    await until(lambda: bench.held(TEMPLATES) == 0)
    assert (bench.requests(), bench.outcomes, bench.finished) == (2, [], [0])
    assert bench.worker.pools["a"].running == 0


async def test_a_worker_that_stops_leaves_what_has_no_place_to_the_next() -> None:
    bench = Bench(lambda _path, _body: Hang(), limit=2)
    bench.renderer.answer = lambda _variables: ["rendered"]
    pins = await planned(bench, PLAIN, SANDBOXED)
    bench.take(*lines(*range(2)), batch="b2")
    bench.take(*(ask(n, 2, variables={"text": "x"}) for n in range(2)), pins=pins, pool=TEMPLATES)
    await until(lambda: len(bench.renderer.asked) == 2)
    await asyncio.wait_for(bench.worker.stop(0.05), timeout=5)
    assert (bench.outcomes, bench.finished) == ([], [])


async def test_a_line_of_a_prompt_that_is_rendered_is_answered_like_any_other() -> None:
    bench = Bench()
    bench.renderer.answer = lambda _variables: ["rendered"]
    pins = await planned(bench, PLAIN, SANDBOXED)
    bench.take(ask(0, 2, variables={"text": "x"}), pins=pins, pool=TEMPLATES)
    await until(lambda: bench.finished == [0])
    (outcome,) = bench.outcomes
    assert outcome.kind is OutcomeKind.COMPLETED
    assert bench.bodies()[0]["messages"] == [user("rendered")]
