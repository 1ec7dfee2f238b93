"""Streamed answers (server-sent events) of the chat, completions and responses APIs."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec
from aiohttp import web

from streams.simulator.answers import answer_id, answer_text, finish_reason, usage_json
from streams.simulator.call import Call, Endpoint

_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
_DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.encode


async def stream_answer(
    request: web.BaseRequest,
    call: Call,
    tokens: AsyncGenerator[int, None],
    before_last: Callable[[], None],
    *,
    cut_at_token: int | None = None,
) -> web.StreamResponse:
    """Sends the answer as its tokens become ready; stops dead after cut_at_token, if given.

    Refusals come out of the first step of `tokens`, before a byte is written.
    """
    words = msgspec.json.decode(answer_text(call), type=str).split(" ")
    prefix = len(words) - call.completion_tokens
    ready = await anext(tokens, 0)
    response = web.StreamResponse(headers=_HEADERS)
    await response.prepare(request)
    dialect = _ResponsesStream(call) if call.endpoint is Endpoint.RESPONSES else _ChunkStream(call)
    await response.write(dialect.opening())
    sent = 0
    while ready and sent < call.completion_tokens:
        end = sent + ready
        piece = " ".join(words[prefix + sent if sent else 0 : prefix + end])
        await response.write(dialect.delta(piece if sent == 0 else f" {piece}"))
        sent = end
        if cut_at_token is not None and sent >= cut_at_token:
            if request.transport is not None:
                request.transport.close()
            return response
        ready = await anext(tokens, 0)
    before_last()
    await response.write(dialect.closing())
    return response


class _ChunkStream:
    """chat.completion.chunk and text_completion chunks, ended by [DONE]."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._chat = call.endpoint is Endpoint.CHAT
        self._base = {
            "id": answer_id(call),
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": int(time.time()),
            "model": call.model,
        }

    def _chunk(self, delta: dict[str, Any], text: str, reason: str | None) -> bytes:
        choices = []
        for index in range(self._call.choices):
            choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": reason}
            if self._chat:
                choice["delta"] = delta
            else:
                choice["text"] = text
            choices.append(choice)
        return b"data: %b\n\n" % _encode({**self._base, "choices": choices})

    def opening(self) -> bytes:
        return self._chunk({"role": "assistant", "content": ""}, "", None)

    def delta(self, text: str) -> bytes:
        return self._chunk({"content": text}, text, None)

    def closing(self) -> bytes:
        last = self._chunk({}, "", finish_reason(self._call).decode())
        if self._call.include_usage:
            usage = usage_json(self._call)
            chunk = _encode({**self._base, "choices": []})
            last += b"data: %b%b}\n\n" % (chunk[:-1], usage)
        return last + _DONE


class _ResponsesStream:
    """The typed events of the Responses API."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._id = answer_id(call)
        self._item = f"msg_{self._id}"
        self._created = int(time.time())
        self._sequence = 0
        self._text: list[str] = []

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = _encode({"type": kind, "sequence_number": self._sequence, **fields})
        self._sequence += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)

    def _response(self, status: str, output: list[dict[str, Any]], usage: Any) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "model": self._call.model,
            "output": output,
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "usage": usage,
        }

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "type": "message",
            "id": self._item,
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": []}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item, "output_index": 0, "content_index": 0}

    def opening(self) -> bytes:
        started = self._response("in_progress", [], None)
        return b"".join(
            (
                self._event("response.created", response=started),
                self._event("response.in_progress", response=started),
                self._event(
                    "response.output_item.added",
                    output_index=0,
                    item=self._message("in_progress", []),
                ),
                self._event("response.content_part.added", **self._place(), part=self._part("")),
            )
        )

    def delta(self, text: str) -> bytes:
        self._text.append(text)
        return self._event("response.output_text.delta", **self._place(), delta=text, logprobs=[])

    def closing(self) -> bytes:
        text = "".join(self._text)
        part = self._part(text)
        item = self._message("completed", [part])
        usage = msgspec.json.decode(usage_json(self._call)[len(b',"usage":') :])
        whole = self._response("completed", [item], usage)
        return b"".join(
            (
                self._event("response.output_text.done", **self._place(), text=text, logprobs=[]),
                self._event("response.content_part.done", **self._place(), part=part),
                self._event("response.output_item.done", output_index=0, item=item),
                self._event("response.completed", response=whole),
            )
        )
