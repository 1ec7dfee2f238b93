"""The pool of template processes, with real processes and real templates."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import structlog
import uvloop

from schemas.metrics import RENDER_SECONDS, RENDERER_ENDS, RENDERS, Metrics
from streams.domain.prompts.sandbox import Sandbox
from streams.domain.prompts.sandbox_filters import FILTERS, TESTS
from streams.domain.prompts.template import (
    RenderError,
    RenderFailed,
    RenderTimeout,
    RenderTooLarge,
)
from streams.rendering.renderer import Renderer, RendererStoppedError
from tests.support import stubborn_templates
from tests.support.waiting import eventually, eventually_sync

LOOP = "{% for item in items %}{{ item.name|upper }};{% endfor %}{{ who }}"
#: A million turns of allowed loops, which take a second or more.
SLOW = (
    "{% for a in items %}{% for b in items %}{% for c in items %}{% if a == c %}{% endif %}"
    "{% endfor %}{% endfor %}{% endfor %}"
)
MANY = json.dumps({"items": list(range(200))}).encode()


def variables(**values: object) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode()


def is_gone(pid: int) -> bool:
    """Whether the process has ended; nobody may have taken its exit code."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
async def renderer() -> AsyncIterator[Renderer]:
    renderer = Renderer(processes=2, line_wall_s=60)
    yield renderer
    await renderer.stop()


async def test_texts_are_those_of_the_sandbox(renderer: Renderer) -> None:
    values = {"items": [{"name": "straße"}, {"name": 'q"\\'}], "who": "日本 \u2028\x00 {{ who }}"}
    sources = [LOOP, "{{ who|length }}", "{% raw %}{{ no }}{% endraw %}", LOOP]
    texts = await renderer.render(sources, variables(**values), fair_key="a")
    sandbox = Sandbox()
    assert [json.loads(text) for text in texts] == [sandbox.render(s, values) for s in sources]
    assert all(text[:1] == text[-1:] == b'"' for text in texts)


#: A value for each kind of thing that filters and tests are made for.
VALUES = ["some Words ", 3, -2.5, True, None, [3, 1, 2], {"b": 1, "a": [2]}, [{"k": 1}]]
ARGUMENTS = ["", "(1)", "('k')", "([1, 2])", "(3, 'x')"]


def of_sandbox(sandbox: Sandbox, source: str, value: object) -> str:
    try:
        return sandbox.render(source, {"x": value})
    except RenderError as error:
        return type(error).__name__


async def of_process(renderer: Renderer, source: str, value: object) -> str:
    try:
        (text,) = await renderer.render([source], variables(x=value), fair_key="a")
    except RenderError as error:
        return type(error).__name__
    return str(json.loads(text))


async def test_every_filter_and_test_works_where_no_file_can_be_opened(
    renderer: Renderer,
) -> None:
    sandbox = Sandbox()
    sources = [f"{{{{ x|{name}{a} }}}}" for name in FILTERS for a in ARGUMENTS]
    sources += [f"{{{{ x is {name}{a} }}}}" for name in TESTS for a in ARGUMENTS]
    for source in sources:
        for value in VALUES:
            there = await of_process(renderer, source, value)
            assert there == of_sandbox(sandbox, source, value), (source, value)


async def test_a_thousand_lines_of_several_keys_are_all_right(renderer: Renderer) -> None:
    sources = [f"{{% if n %}}{number}: {{{{ n }}}}{{% endif %}}" for number in range(200)]
    ended: list[str] = []

    async def one(number: int) -> None:
        key = "abcdefg"[number % 7]
        source = sources[number * 7 % 200]
        (text,) = await renderer.render([source], variables(n=f"line {number}"), fair_key=key)
        assert json.loads(text) == f"{number * 7 % 200}: line {number}"
        ended.append(key)

    await asyncio.gather(*(one(number) for number in range(1000)))
    assert Counter(ended) == Counter("abcdefg"[number % 7] for number in range(1000))
    assert len(renderer.pids) == 2


async def test_a_slow_template_times_out_and_others_go_on(renderer: Renderer) -> None:
    quick = [renderer.render([LOOP], variables(items=[], who=i), fair_key="b") for i in range(50)]
    slow = [renderer.render([SLOW], MANY, fair_key="a") for _ in range(3)]
    ended = await asyncio.gather(*slow, *quick, return_exceptions=True)
    assert [type(error) for error in ended[:3]] == [RenderTimeout] * 3
    assert ended[3:] == [[b'"%d"' % i] for i in range(50)]


async def test_lines_of_a_costly_key_do_not_hold_up_those_of_another() -> None:
    renderer = stubborn(processes=1)
    costly = [
        asyncio.create_task(renderer.render(["sleep"], variables(seconds=0.05), fair_key="a"))
        for _ in range(1000)
    ]
    for number in range(10):
        await renderer.render(["echo"], variables(text=number), fair_key="b")
    assert sum(task.done() for task in costly) < 200
    await renderer.stop()
    await asyncio.gather(*costly, return_exceptions=True)


async def test_large_templates_may_take_their_time_to_compile(renderer: Renderer) -> None:
    # Several times what the line may take.
    sources = [f"{number}{'{{ x|upper }}' * 400}" for number in range(8)]
    texts = await renderer.render(sources, variables(x="y"), fair_key="a")
    assert texts == [f'"{number}{"Y" * 400}"'.encode() for number in range(8)]


async def test_a_text_above_the_limit_is_too_large(renderer: Renderer) -> None:
    source = "{% for a in items %}{{ text }}{% endfor %}"
    large = variables(items=[0] * 42, text="x" * 100_000)
    fits = variables(items=[0] * 40, text="x" * 100_000)
    with pytest.raises(RenderTooLarge):
        await renderer.render([source], large, fair_key="a")
    (text,) = await renderer.render([source], fits, fair_key="a")
    assert len(text) == 4_000_002
    with pytest.raises(RenderTooLarge):
        await renderer.render([source, source], fits, fair_key="a")


@pytest.mark.parametrize(
    "sent",
    [b"{", b"[]", b"", b'{"who": NaN, "items": []}', b"[" * 100_000, b'{"who":' * 50_000, b"\xff"],
)
async def test_variables_that_are_no_use_fail_the_line_alone(
    renderer: Renderer, sent: bytes
) -> None:
    with pytest.raises(RenderFailed):
        await renderer.render([LOOP], sent, fair_key="a")
    good = variables(items=[], who="ok")
    assert await renderer.render([LOOP], good, fair_key="a") == [b'"ok"']


async def test_a_template_that_is_not_allowed_fails(renderer: Renderer) -> None:
    for source in ("{{ x.__class__ }}", "{% include 'a' %}", "{{ x", "{{ x() }}"):
        with pytest.raises(RenderFailed):
            await renderer.render([source], variables(x="a"), fair_key="a")


async def test_nothing_to_render_starts_no_process(renderer: Renderer) -> None:
    assert renderer.pids == []
    assert await renderer.render([], b"{}", fair_key="a") == []


# What no allowed template can do


def stubborn(**settings: Any) -> Renderer:
    settings = {"line_wall_s": 60, **settings}
    return Renderer(module=stubborn_templates.MODULE, **settings)


def waiting(renderer: Renderer) -> int:
    """How many lines wait for a process."""
    return sum(map(len, renderer._turns._waiting.values()))


def busy(renderer: Renderer) -> list[int]:
    """Process ids of those that have a line now."""
    return [p.pid for p in renderer._running.values() if p._answer is not None]


async def result(renderer: Renderer, deed: str, **arguments: object) -> object:
    """A deed's text, or what kind of failure it was."""
    try:
        (text,) = await renderer.render([deed], variables(**arguments), fair_key="a")
    except RenderError as error:
        return type(error)
    return json.loads(text)


@pytest.mark.parametrize(
    ("deed", "expected", "reason"),
    [
        ("spin", RenderTimeout, "spent"),
        ("spin in C", RenderTimeout, "died"),
        ("hold on", RenderTimeout, "died"),
        ("compile for ever", RenderTimeout, "spent"),
        ("eat", RenderTimeout, "spent"),
        ("eat at once", RenderTimeout, "spent"),
        ("crash", RenderTimeout, "died"),
        ("exit", RenderTimeout, "died"),
        ("exit quietly", RenderTimeout, "died"),
        ("close", RenderTimeout, "misbehaved"),
        ("say garbage", RenderTimeout, "misbehaved"),
        ("say much", RenderTimeout, "misbehaved"),
        ("say ready", RenderTimeout, "misbehaved"),
        ("say too few", RenderTimeout, "misbehaved"),
        ("say too much", RenderTimeout, "misbehaved"),
        ("say half a character", RenderTimeout, "misbehaved"),
    ],
)
async def test_a_line_that_ends_its_process_gets_an_error_and_the_next_a_new_process(
    deed: str, expected: type[RenderError], reason: str
) -> None:
    metrics = Metrics()
    renderer = stubborn(processes=1, metrics=metrics, memory_bytes=64 << 20, compile_cpu_s=0.3)
    try:
        before = await result(renderer, "pid")
        assert await result(renderer, deed) is expected
        after = await result(renderer, "pid")
        assert isinstance(before, str)
        assert before != after
        assert is_gone(int(before))
        assert metrics.registry.get_sample_value(RENDERER_ENDS.name, {"reason": reason}) == 1
        assert metrics.registry.get_sample_value(RENDERS.name, {"result": "timeout"}) == 1
        assert metrics.registry.get_sample_value(RENDERS.name, {"result": "rendered"}) == 2
        assert metrics.registry.get_sample_value(RENDER_SECONDS.name + "_count") == 3
    finally:
        await renderer.stop()


async def test_two_answers_to_one_line_end_the_process() -> None:
    metrics = Metrics()
    renderer = stubborn(processes=1, metrics=metrics)
    try:
        # Whether the first of them arrives alone is chance; the second must never be the answer
        # to another line.
        assert await result(renderer, "say twice") in (RenderFailed, RenderTimeout)
        assert await result(renderer, "echo", text="mine") in ("mine", RenderTimeout)
        assert await result(renderer, "echo", text="mine") == "mine"
        ended = metrics.registry.get_sample_value(RENDERER_ENDS.name, {"reason": "misbehaved"})
        assert ended == 1
    finally:
        await renderer.stop()


@pytest.mark.parametrize(
    ("deed", "expected"),
    [
        ("recurse", RenderFailed),
        ("no such deed", RenderFailed),
        ("open", "3 of 3 refused"),
        ("environment", "LC_CTYPE"),
    ],
)
async def test_a_line_that_harms_nobody_leaves_its_process_alone(
    deed: str, expected: object
) -> None:
    renderer = stubborn(processes=1)
    try:
        before = await result(renderer, "pid")
        found = await result(renderer, deed)
        assert found == expected or (deed == "environment" and found == "")
        assert await result(renderer, "pid") == before
    finally:
        await renderer.stop()


async def test_a_process_that_keeps_much_memory_is_replaced() -> None:
    renderer = stubborn(processes=1, memory_bytes=256 << 20, line_cpu_s=20)
    try:
        little = await result(renderer, "use", mib=40)
        much = await result(renderer, "use", mib=150)
        assert little == much
        assert await result(renderer, "pid") != much
    finally:
        await renderer.stop()


async def test_a_process_that_does_not_answer_is_killed_after_its_time_by_the_clock() -> None:
    metrics = Metrics()
    renderer = stubborn(processes=1, metrics=metrics, line_wall_s=3)
    try:
        await result(renderer, "echo", text="")
        # A template that the process has compiled has no time for compiling.
        assert await result(renderer, "sleep", seconds=0) == "awake"
        assert await result(renderer, "sleep", seconds=3600) is RenderTimeout
        assert metrics.registry.get_sample_value(RENDERER_ENDS.name, {"reason": "stuck"}) == 1
        assert await result(renderer, "echo", text="next") == "next"
    finally:
        await renderer.stop()


async def test_a_line_survives_one_kill_from_outside_and_not_two() -> None:
    renderer = stubborn(processes=1)
    try:
        await result(renderer, "pid")
        line = asyncio.create_task(result(renderer, "sleep", seconds=3600))
        (first,) = await eventually(lambda: busy(renderer))
        os.kill(first, signal.SIGKILL)
        (second,) = await eventually(lambda: [pid for pid in busy(renderer) if pid != first])
        assert not line.done()
        os.kill(second, signal.SIGKILL)
        assert await line is RenderTimeout
    finally:
        await renderer.stop()


async def test_an_idle_process_that_is_killed_is_replaced_before_it_is_needed() -> None:
    renderer = Renderer(processes=2, line_wall_s=60)
    try:
        await renderer.start()
        await eventually(lambda: len(renderer.pids) == 2)
        before = set(renderer.pids)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: len(set(renderer.pids) - before) == 2)
        assert await renderer.render([LOOP], variables(items=[], who=1), fair_key="a") == [b'"1"']
    finally:
        await renderer.stop()


async def test_signals_for_the_whole_service_leave_the_processes_at_work() -> None:
    renderer = stubborn(processes=1)
    try:
        before = await result(renderer, "pid")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(int(str(before)), number)
        assert await result(renderer, "pid") == before
    finally:
        await renderer.stop()


async def test_a_waiting_line_can_be_withdrawn_and_a_running_one_finishes_alone() -> None:
    metrics = Metrics()
    renderer = stubborn(processes=1, metrics=metrics)
    try:
        before = await result(renderer, "pid")
        tasks = [
            asyncio.create_task(result(renderer, "sleep", seconds=2)),
            asyncio.create_task(result(renderer, "crash")),
        ]
        await eventually(lambda: waiting(renderer) == 1)
        for task in tasks:
            task.cancel()
        assert await result(renderer, "pid") == before
        assert all(task.cancelled() for task in tasks)
        rendered = metrics.registry.get_sample_value(RENDERS.name, {"result": "rendered"})
        assert rendered == 3
    finally:
        await renderer.stop()


# Starting and stopping


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("/no/such/program",), "No such file or directory"),
        ((sys.executable, "-c", "import no_such_module"), "No module named 'no_such_module'"),
        ((sys.executable, "-c", "raise SystemExit(7)"), "it ended with code 7"),
        ((sys.executable, "-c", "print('x' * 100)"), "it ended with code"),
    ],
)
async def test_lines_wait_while_no_process_can_start_and_the_log_says_why(
    command: tuple[str, ...], why: str
) -> None:
    with structlog.testing.capture_logs() as logs:
        renderer = Renderer(processes=1, command=command)
        secret = variables(items=[], who="secret")
        line = asyncio.create_task(renderer.render([LOOP], secret, fair_key="secret"))
        await eventually(lambda: len(logs) >= 2, within_s=30)
        assert not line.done()
        await renderer.stop()
    with pytest.raises(RendererStoppedError):
        await line
    assert logs[0]["action"] == "renderer_not_started"
    assert why in logs[0]["why"]
    assert len(logs) < 10
    assert "secret" not in str(logs)


async def test_nothing_that_was_sent_is_logged_or_in_an_exception() -> None:
    with structlog.testing.capture_logs() as logs:
        renderer = stubborn(processes=1)
        for deed in ("say garbage", "crash", "echo"):
            with pytest.raises(RenderError) as caught:
                await renderer.render([deed], variables(secret="secret"), fair_key="secret")
            assert "secret" not in repr(caught.value)
        await renderer.stop()
    assert [line["action"] for line in logs] == ["renderer_misbehaved"]
    assert "secret" not in str(logs)


async def test_stopping_ends_the_processes_and_all_lines() -> None:
    renderer = stubborn(processes=2)
    await result(renderer, "pid")
    lines = [
        asyncio.create_task(renderer.render(["sleep"], variables(seconds=3600), fair_key="a"))
        for _ in range(5)
    ]
    await eventually(lambda: len(renderer.pids) == 2 and waiting(renderer) == 3)
    pids = renderer.pids
    await renderer.stop()
    ended = await asyncio.gather(*lines, return_exceptions=True)
    assert [type(error) for error in ended] == [RendererStoppedError] * 5
    for pid in pids:
        assert not psutil.pid_exists(pid)
    with pytest.raises(RendererStoppedError):
        await renderer.render([LOOP], b"{}", fair_key="a")
    await renderer.stop()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_stopping_at_any_moment_of_a_start_leaves_nothing_open(run: Callable[..., None]) -> None:
    async def scenario(moment: int) -> None:
        renderer = Renderer(processes=2)
        await renderer.start()
        for _ in range(moment):
            await asyncio.sleep(0)
        if moment > 10:
            await asyncio.sleep(0.02 * (moment - 10))
        await renderer.stop()

    before = psutil.Process().children(recursive=True)
    for moment in range(16):
        run(scenario(moment))
        # Transports that nobody closed say so when they are collected, and fail the test.
        gc.collect()
    after = psutil.Process().children(recursive=True)
    assert {child.pid for child in after} <= {child.pid for child in before}


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_stopping_while_a_process_is_replaced_leaves_nothing_open(run: Callable[..., None]) -> None:
    async def scenario(deed: str, moment: int) -> None:
        renderer = stubborn(processes=1, line_cpu_s=0.01)
        assert await result(renderer, deed) is RenderTimeout
        for _ in range(moment):
            await asyncio.sleep(0)
        await renderer.stop()

    before = psutil.Process().children(recursive=True)
    for deed in ("spin", "say garbage"):
        for moment in range(5):
            run(scenario(deed, moment))
            gc.collect()
    after = psutil.Process().children(recursive=True)
    assert {child.pid for child in after} <= {child.pid for child in before}


PARENT = """
import asyncio
from streams.rendering.renderer import Renderer
from tests.support import stubborn_templates
async def main():
    renderer = Renderer(processes=2, module=stubborn_templates.MODULE)
    await renderer.render(["echo"], b'{"text": ""}', fair_key="a")
    while len(renderer.pids) < 2:
        await asyncio.sleep(0.01)
    print(*renderer.pids, flush=True)
    await renderer.render(["{}"], b'{"seconds": 1}', fair_key="a")
    await asyncio.sleep(3600)
asyncio.run(main())
"""


@pytest.mark.parametrize("doing", ["sleep", "echo"])
def test_processes_end_by_themselves_when_their_parent_is_killed(doing: str) -> None:
    command = [sys.executable, "-c", PARENT.replace("{}", doing)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
    for pid in pids:
        eventually_sync(lambda pid=pid: is_gone(pid), within_s=30)  # type: ignore[misc]


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_it_works_on_the_event_loop_of_the_roles_too(run: Callable[..., None]) -> None:
    async def scenario() -> None:
        renderer = stubborn(processes=2)
        before = await result(renderer, "pid")
        deeds = ["spin", "crash", "say garbage", *["echo"] * 20]
        ended = await asyncio.gather(*(result(renderer, deed, text="x") for deed in deeds[3:]))
        assert ended == ["x"] * 20
        for deed in deeds[:3]:
            assert await result(renderer, deed) is RenderTimeout
        assert await result(renderer, "pid") != before
        large = await result(renderer, "repeat", text="x" * 1000, times=4000)
        assert large == "x" * 4_000_000
        line = asyncio.create_task(result(renderer, "sleep", seconds=3600))
        await asyncio.sleep(0)
        pids = renderer.pids
        await renderer.stop()
        assert not any(psutil.pid_exists(pid) for pid in pids)
        with pytest.raises(RendererStoppedError):
            await line
        broken = Renderer(processes=1, command=("/no/such/program",))
        await broken.start()
        await asyncio.sleep(0.01)
        await broken.stop()

    run(scenario())
