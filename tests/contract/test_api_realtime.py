"""The real-time lane over HTTP: what clients of the official SDK get, good and bad.

The worker is the real one; the log and the upstream are fakes.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from openai import APIError, APIStatusError

from schemas.records import RealtimeCancel, RealtimeReplies, RealtimeReply, ReplyKind
from schemas.topics import REALTIME_CANCEL, REALTIME_REPLY, REALTIME_REQUEST
from streams.adapters.inference_fake import (
    Babble,
    Behaviour,
    CutOff,
    Events,
    Hang,
    Reply,
    Reset,
    Script,
)
from streams.settings import Settings
from tests.support.gateway import TIMEOUTS, GatewayUnderTest, running_gateway
from tests.support.lane import (
    UPSTREAMS,
    USAGE,
    always,
    chunk,
    completion,
    events,
    lane_worker,
)
from tests.support.waiting import eventually

MESSAGES: Any = [{"role": "user", "content": "hi"}]
QUICK = replace(TIMEOUTS, accept_s=2.0, silence_s=3.0)


@pytest.fixture
async def gateway() -> AsyncIterator[GatewayUnderTest]:
    async with running_gateway(upstreams=UPSTREAMS, timeouts=QUICK) as running:
        yield running


async def _chat(gateway: GatewayUnderTest, **fields: Any) -> Any:
    given = {"model": "m1", "messages": MESSAGES, **fields}
    return await gateway.client().chat.completions.create(**given)


async def _refused(gateway: GatewayUnderTest, **fields: Any) -> APIStatusError:
    with pytest.raises(APIStatusError) as caught:
        await _chat(gateway, **fields)
    return caught.value


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_chat_completion_is_what_the_upstream_answered(
    gateway: GatewayUnderTest, kind: str
) -> None:
    async with lane_worker(gateway.log, always(completion("the sea"))) as worker:
        answer = await gateway.sdk(kind)(
            lambda c: c.chat.completions.create(model="m1", messages=MESSAGES, temperature=0.5)
        )
    assert answer.choices[0].message.content == "the sea"
    assert answer.usage.total_tokens == 5
    path, body = worker.upstream.requests[0]
    assert path == "/v1/chat/completions"
    assert json.loads(body) == {"model": "m1", "messages": MESSAGES, "temperature": 0.5}


async def test_the_raw_answer_has_the_headers_of_every_answer(gateway: GatewayUnderTest) -> None:
    async with lane_worker(gateway.log, always(completion())):
        raw = await gateway.client().chat.completions.with_raw_response.create(
            model="m1", messages=MESSAGES
        )
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.headers["content-type"].startswith("application/json")
    assert raw.headers["openai-processing-ms"].isdigit()
    assert raw.parse().choices[0].message.content == "hello"


async def test_events_are_passed_on_as_they_are(gateway: GatewayUnderTest) -> None:
    told = events("a", "b", "é")
    async with (
        lane_worker(gateway.log, always(told)),
        gateway.http().post(
            "/v1/chat/completions", json={"model": "m1", "messages": MESSAGES, "stream": True}
        ) as answer,
    ):
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert await answer.read() == b"".join(told.chunks)


@pytest.mark.parametrize("stream", [1, "true", []])
async def test_a_stream_is_true_or_false(gateway: GatewayUnderTest, stream: Any) -> None:
    """An upstream that takes these for true would stream without telling its usage."""
    body = {"model": "m1", "messages": MESSAGES, "stream": stream}
    async with gateway.http().post("/v1/chat/completions", json=body) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["param"] == "stream"


async def test_the_first_event_does_not_wait_for_the_second(gateway: GatewayUnderTest) -> None:
    # Had it waited for the second, which is the last, the call would be over.
    async with lane_worker(gateway.log, always(events("a", pause_s=3.0))) as worker:
        stream = await _chat(gateway, stream=True)
        await anext(aiter(stream))
        assert worker.upstream.running == 1
        await stream.close()


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_the_sdk_streams(gateway: GatewayUnderTest, kind: str) -> None:
    async with lane_worker(gateway.log, always(events("to ", "be"))):
        if kind == "async":
            stream = await _chat(gateway, stream=True)
            words = [part.choices[0].delta.content async for part in stream]
        else:
            client = gateway.sync_client()

            def read() -> list[str | None]:
                made = client.chat.completions.create(model="m1", messages=MESSAGES, stream=True)
                return [part.choices[0].delta.content for part in made]

            words = await asyncio.to_thread(read)
    assert words == ["to ", "be"]


async def test_completions_embeddings_and_responses_take_the_same_way(
    gateway: GatewayUnderTest,
) -> None:
    answers = {
        "/v1/completions": {"choices": [{"text": "t", "index": 0}], "usage": USAGE},
        "/v1/embeddings": {"data": [{"embedding": [0.5], "index": 0}], "usage": USAGE},
        "/v1/responses": {"id": "resp_1", "output": [], "usage": {}},
    }

    def script(path: str, _body: bytes) -> Behaviour:
        return Reply(body=json.dumps(answers[path]).encode())

    client = gateway.client()
    async with lane_worker(gateway.log, script) as worker:
        text = await client.completions.create(model="m1", prompt="x")
        vector = await client.embeddings.create(model="m1", input="x", encoding_format="float")
        response = await client.responses.create(model="m1", input="x")
    assert text.choices[0].text == "t"
    assert vector.data[0].embedding == [0.5]
    assert response.id == "resp_1"
    assert [path for path, _ in worker.upstream.requests] == list(answers)


async def test_the_upstream_hears_the_name_that_it_knows(gateway: GatewayUnderTest) -> None:
    async with lane_worker(gateway.log, always(completion())) as worker:
        await _chat(gateway, model="renamed")
    assert json.loads(worker.upstream.requests[0][1])["model"] == "inside"


async def test_a_model_that_nobody_serves_is_not_found(gateway: GatewayUnderTest) -> None:
    error = await _refused(gateway, model="nobody's")
    assert (error.status_code, error.code, error.param) == (404, "model_not_found", "model")
    assert gateway.log.of(REALTIME_REQUEST) == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b'{"messages": []}', "model"),
        (b'{"model": 7}', "model"),
        (b'{"model": null}', "model"),
    ],
)
async def test_a_body_that_asks_nothing_is_refused(
    gateway: GatewayUnderTest, body: bytes, param: str | None
) -> None:
    async with gateway.http().post("/v1/chat/completions", data=body) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["param"] == param


async def test_a_body_above_the_limit_is_refused(gateway: GatewayUnderTest) -> None:
    body = b'{"model": "m1", "messages": "' + b"x" * (2 * 1024 * 1024) + b'"}'
    async with gateway.http().post("/v1/chat/completions", data=io.BytesIO(body)) as answer:
        assert answer.status == 413
        assert (await answer.json())["error"]["code"] == "request_too_large"


async def test_no_key_no_answer(gateway: GatewayUnderTest) -> None:
    async with gateway.http(None).post("/v1/chat/completions", json={"model": "m1"}) as answer:
        assert answer.status == 401


@pytest.mark.parametrize("status", [400, 404, 422, 500, 503])
async def test_the_upstreams_own_errors_are_passed_on(
    gateway: GatewayUnderTest, status: int
) -> None:
    body = json.dumps(
        {"error": {"message": "no such thing", "type": "t", "param": "top_p", "code": "c"}}
    ).encode()
    async with lane_worker(gateway.log, always(Reply(status, body))):
        for stream in (False, True):
            error = await _refused(gateway, stream=stream)
            assert (error.status_code, error.code, error.param) == (status, "c", "top_p")
            retry = error.response.headers.get("x-should-retry")
            assert retry == ("true" if status >= 500 else None)


async def test_a_rate_limit_comes_with_the_time_to_wait(gateway: GatewayUnderTest) -> None:
    told = Reply(429, b'{"error": {"message": "slow down"}}', {"Retry-After": "7"})
    async with lane_worker(gateway.log, always(told)):
        error = await _refused(gateway)
    assert (error.status_code, error.response.headers["Retry-After"]) == (429, "7")


@pytest.mark.parametrize("status", [404, 502])
async def test_an_error_page_becomes_an_envelope(gateway: GatewayUnderTest, status: int) -> None:
    async with lane_worker(gateway.log, always(Reply(status, b"<html>secret</html>"))):
        error = await _refused(gateway)
    assert error.status_code == status
    assert "secret" not in error.response.text
    assert set(error.response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("behaviour", "status", "code"),
    [
        (Reset(), 503, "upstream_unreachable"),
        (CutOff(), 503, "upstream_unreachable"),
        (Babble(), 502, "upstream_invalid_response"),
        (Reply(body=b"not json"), 502, "upstream_invalid_response"),
        (Reply(body=b""), 502, "upstream_invalid_response"),
        (Reply(302, b""), 502, "upstream_invalid_response"),
        (Reply(body=b'"' + b"x" * 16 * 1024 * 1024 + b'"'), 502, "response_too_large"),
        (events(cut=True), 503, "upstream_unreachable"),
    ],
    ids=["reset", "cut off", "babble", "garbage", "empty", "redirect", "huge", "no event"],
)
async def test_an_upstream_that_fails_is_an_error_at_once(
    gateway: GatewayUnderTest, behaviour: Behaviour, status: int, code: str
) -> None:
    async with lane_worker(gateway.log, always(behaviour)):
        error = await asyncio.wait_for(_refused(gateway), 30)
    assert (error.status_code, error.code) == (status, code)


async def test_a_connection_that_was_closed_meanwhile_is_tried_again(
    gateway: GatewayUnderTest,
) -> None:
    behaviours: Iterator[Behaviour] = iter([Reset(), completion()])
    async with lane_worker(gateway.log, lambda _path, _body: next(behaviours)) as worker:
        assert (await _chat(gateway)).choices[0].message.content == "hello"
    assert len(worker.upstream.requests) == 2


async def test_a_stream_that_breaks_off_ends_with_an_error_event(
    gateway: GatewayUnderTest,
) -> None:
    half = Events((chunk("a"), chunk("b")[:20]), cut=True)
    async with lane_worker(gateway.log, always(half)):
        parts = aiter(await _chat(gateway, stream=True))
        assert (await anext(parts)).choices[0].delta.content == "a"
        with pytest.raises(APIError, match="broke off"):
            await anext(parts)


async def test_a_stream_of_which_the_broker_took_no_more_ends_with_an_error_event(
    gateway: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.realtime_worker.replies.GIVE_UP_S", -1.0)
    endless = events(*["a"] * 5000, pause_s=0.02)
    async with lane_worker(gateway.log, always(endless)) as worker:
        parts = aiter(await _chat(gateway, stream=True))
        await anext(parts)
        worker.refused = 1
        with pytest.raises(APIError, match="is gone"):
            async for _ in parts:
                pass
        await eventually(lambda: worker.upstream.running == 0)


async def test_without_a_worker_there_is_an_error_and_nothing_runs_later(
    gateway: GatewayUnderTest,
) -> None:
    error = await _refused(gateway)
    assert (error.status_code, error.code) == (503, "no_worker")
    assert int(error.response.headers["Retry-After"]) >= 1
    request = gateway.log.of(REALTIME_REQUEST)[0].record
    async with lane_worker(gateway.log, always(completion())) as worker:
        worker.worker.take(request)  # type: ignore[arg-type]
        assert (await _chat(gateway)).choices
    assert len(worker.upstream.requests) == 1


async def test_a_worker_that_falls_silent_is_noticed(gateway: GatewayUnderTest) -> None:
    async with lane_worker(gateway.log, always(Hang())) as worker:
        asking = asyncio.create_task(_refused(gateway))
        await eventually(lambda: worker.upstream.running == 1)
        await eventually(lambda: _accepted(gateway))
        await worker.kill()
        error = await asyncio.wait_for(asking, 30)
    assert (error.status_code, error.code) == (503, "worker_lost")


async def test_a_worker_that_was_started_again_has_lost_what_it_had(
    gateway: GatewayUnderTest,
) -> None:
    endless = events(*["a"] * 5000, pause_s=0.02)
    async with lane_worker(gateway.log, always(endless)) as old:
        stream = await _chat(gateway, stream=True)
        old.mute = True
        async with lane_worker(gateway.log, always(completion()), process="p2"):
            with pytest.raises(APIError, match="is gone"):
                await asyncio.wait_for(_all(stream), 30)


async def test_the_other_workers_requests_go_on(gateway: GatewayUnderTest) -> None:
    slow = always(replace(completion("late"), delay_s=4.0))
    async with lane_worker(gateway.log, slow) as worker:
        asking = asyncio.create_task(_chat(gateway))
        await eventually(lambda: worker.upstream.running == 1)
        assert (await asking).choices[0].message.content == "late"


async def test_a_request_that_takes_too_long_gets_an_error_and_its_call_is_cut() -> None:
    settings = Settings(realtime_timeout_s=0.5)
    async with (
        running_gateway(upstreams=UPSTREAMS, settings=settings) as gateway,
        lane_worker(gateway.log, always(Hang())) as worker,
    ):
        # The worker notices it at the same moment, and who is first is luck.
        worker.mute = True
        error = await asyncio.wait_for(_refused(gateway), 30)
        assert (error.status_code, error.code) == (504, "request_timeout")
        assert error.response.headers["x-should-retry"] == "false"
        await eventually(lambda: worker.upstream.running == 0)
        assert await _left(gateway) is True


async def test_a_client_that_goes_away_ends_its_call(gateway: GatewayUnderTest) -> None:
    async with lane_worker(gateway.log, always(Hang())) as worker:
        asking = asyncio.create_task(_chat(gateway))
        await eventually(lambda: worker.upstream.running == 1)
        asking.cancel()
        await eventually(lambda: worker.upstream.running == 0)
        await eventually(lambda: worker.worker.load(stopping=False).in_flight == 0)


async def test_a_client_that_goes_away_in_the_middle_of_a_stream_ends_its_call(
    gateway: GatewayUnderTest,
) -> None:
    endless = Events(tuple(chunk("a") for _ in range(1000)), pause_s=0.02)
    async with lane_worker(gateway.log, always(endless)) as worker:
        stream = await _chat(gateway, stream=True)
        await anext(aiter(stream))
        await stream.close()
        await eventually(lambda: worker.upstream.running == 0)
        assert await _left(gateway) is True


async def test_a_stream_that_a_stopping_gateway_breaks_off_ends_with_an_error_and_is_not_paid_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("api.app._DRAIN_S", 0.1)
    endless = Events(tuple(chunk("a") for _ in range(1000)), pause_s=0.02)
    async with (
        running_gateway(upstreams=UPSTREAMS) as gateway,
        lane_worker(gateway.log, always(endless)),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(_streamed(gateway))
        await reader.readuntil(b"data: ")
    try:
        rest = await asyncio.wait_for(reader.read(), 30)
    finally:
        writer.close()
    assert b"server_stopping" in rest
    assert await _left(gateway) is False


def _streamed(gateway: GatewayUnderTest) -> bytes:
    body = b'{"model": "m1", "messages": [], "stream": true}'
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (gateway.keys["acme"].encode(), len(body), body)
    )


async def _left(gateway: GatewayUnderTest) -> bool:
    """Whether the one request that was cancelled was given up by its client."""
    await eventually(lambda: any(_cancelled(gateway)))
    cancels = [read.record for read in gateway.log.of(REALTIME_CANCEL)]
    (found,) = [c for c in cancels if isinstance(c, RealtimeCancel) and c.request_id]
    return found.client_left


def _cancelled(gateway: GatewayUnderTest) -> list[str]:
    """Requests that were cancelled; a gateway that starts cancels all of before, without an id."""
    cancels = [read.record for read in gateway.log.of(REALTIME_CANCEL)]
    return [cancel.request_id for cancel in cancels if isinstance(cancel, RealtimeCancel)]


async def test_a_client_that_reads_too_slowly_is_cut_off() -> None:
    settings = Settings(realtime_buffer_bytes=64 * 1024)
    flood = Events(tuple(b"data: " + b"x" * 60_000 + b"\n\n" for _ in range(200)), pause_s=0.001)
    async with (
        running_gateway(upstreams=UPSTREAMS, settings=settings) as gateway,
        lane_worker(gateway.log, always(flood)) as worker,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024)
        writer.write(_streamed(gateway))
        try:
            # The call itself may be over before anybody has looked at it.
            assert await _left(gateway) is True
            await eventually(lambda: worker.upstream.running == 0)
        finally:
            writer.transport.abort()
        del reader


async def test_more_requests_than_allowed_are_told_to_come_back() -> None:
    settings = Settings(realtime_max_pending=2)
    async with (
        running_gateway(upstreams=UPSTREAMS, settings=settings) as gateway,
        lane_worker(gateway.log, always(Hang())) as worker,
    ):
        ask = gateway.client("rival").chat.completions.create
        waiting = [
            asyncio.create_task(_chat(gateway)),
            asyncio.create_task(ask(model="m1", messages=MESSAGES)),
        ]
        await eventually(lambda: worker.upstream.running == 2)
        error = await _refused(gateway)
        assert error.status_code == 429
        assert int(error.response.headers["Retry-After"]) >= 1
        for task in waiting:
            task.cancel()
        await eventually(lambda: worker.upstream.running == 0)


async def test_a_tenant_that_fills_the_lane_leaves_room_for_others() -> None:
    settings = Settings(realtime_max_pending=4)
    async with (
        running_gateway(upstreams=UPSTREAMS, settings=settings) as gateway,
        lane_worker(gateway.log, always(Hang())) as worker,
    ):
        waiting = [asyncio.create_task(_chat(gateway)) for _ in range(3)]
        await eventually(lambda: worker.upstream.running == 3)
        error = await _refused(gateway)
        assert (error.status_code, error.code) == (429, "rate_limit_exceeded")
        assert int(error.response.headers["Retry-After"]) >= 1
        ask = gateway.client("rival").chat.completions.create
        waiting.append(asyncio.create_task(ask(model="m1", messages=MESSAGES)))
        await eventually(lambda: worker.upstream.running == 4)
        waiting.pop(0).cancel()
        waiting.pop(0).cancel()
        await eventually(lambda: worker.upstream.running == 2)
        waiting.append(asyncio.create_task(_chat(gateway)))
        await eventually(lambda: worker.upstream.running == 3)
        for task in waiting:
            task.cancel()
        await eventually(lambda: worker.upstream.running == 0)


async def test_parts_that_come_twice_or_from_another_worker_change_nothing(
    gateway: GatewayUnderTest,
) -> None:
    asking = asyncio.create_task(_chat(gateway))
    request_id = await _asked(gateway)
    await _say(gateway, request_id, (0, ReplyKind.ACCEPTED, b""))
    await _say(gateway, request_id, (0, ReplyKind.ACCEPTED, b""), worker="another")
    await _say(gateway, request_id, (1, ReplyKind.FAILED, b""), worker="another")
    whole = completion("once").body
    for _ in range(2):
        await _say(gateway, request_id, (1, ReplyKind.HEAD, b""), (2, ReplyKind.DATA, whole[:30]))
    await _say(gateway, request_id, (3, ReplyKind.DATA, whole[30:]), (4, ReplyKind.END, b""))
    assert (await asking).choices[0].message.content == "once"


async def test_a_part_that_is_missing_is_an_error_and_not_a_hole(
    gateway: GatewayUnderTest,
) -> None:
    asking = asyncio.create_task(_refused(gateway))
    request_id = await _asked(gateway)
    await _say(gateway, request_id, (0, ReplyKind.ACCEPTED, b""), (1, ReplyKind.HEAD, b""))
    await _say(gateway, request_id, (3, ReplyKind.END, b""))
    assert (await asking).code == "worker_lost"


async def test_a_gateway_that_starts_has_dropped_what_it_had_asked(
    gateway: GatewayUnderTest,
) -> None:
    await eventually(lambda: gateway.log.of(REALTIME_CANCEL) != [])
    first = gateway.log.of(REALTIME_CANCEL)[0].record
    assert isinstance(first, RealtimeCancel)
    assert (first.request_id, first.gateway, first.client_left) == ("", "gateway-0", False)


async def test_a_log_that_is_gone_is_an_error_and_not_a_hang(gateway: GatewayUnderTest) -> None:
    gateway.log.unreachable = True
    error = await asyncio.wait_for(_refused(gateway), 30)
    gateway.log.unreachable = False
    assert error.status_code == 503


async def test_nothing_that_clients_or_upstreams_say_is_logged(
    gateway: GatewayUnderTest, capsys: pytest.CaptureFixture[str]
) -> None:
    scripts: list[Script] = [always(Babble()), always(Reply(500, b"the answer's secret"))]
    for script in scripts:
        async with lane_worker(gateway.log, script):
            await _refused(gateway, messages=[{"role": "user", "content": "the asker's secret"}])
    assert "secret" not in "".join(capsys.readouterr())


async def _all(stream: Any) -> list[Any]:
    return [part async for part in stream]


def _accepted(gateway: GatewayUnderTest) -> bool:
    return gateway.log.of(REALTIME_REPLY) != []


async def _asked(gateway: GatewayUnderTest) -> str:
    await eventually(lambda: gateway.log.of(REALTIME_REQUEST) != [])
    return gateway.log.of(REALTIME_REQUEST)[0].key


async def _say(
    gateway: GatewayUnderTest,
    request_id: str,
    *parts: tuple[int, ReplyKind, bytes],
    worker: str = "w",
) -> None:
    record = RealtimeReplies(
        gateway="gateway-0",
        worker=worker,
        process="p",
        at_ms=1,
        replies=tuple(
            RealtimeReply(
                request_id=request_id,
                sequence=sequence,
                kind=kind,
                data=data,
                status=200 if kind is ReplyKind.HEAD else 0,
                reason="unreachable" if kind is ReplyKind.FAILED else "",
            )
            for sequence, kind, data in parts
        ),
    )
    await gateway.log.send_to(REALTIME_REPLY, 0, record)
