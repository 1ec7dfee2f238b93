"""The bodies of the simulated server's answers, put together from prebuilt bytes."""

from __future__ import annotations

import base64
import json
import struct
import time

import msgspec

from streams.simulator.call import Call, Endpoint, cached_tokens, reasoning_tokens
from streams.simulator.conduct import MAX_COMPLETION_TOKENS

_WORD = b"word "
#: An answer's text is a slice of this: five bytes a token.
_WORDS = _WORD * MAX_COMPLETION_TOKENS
#: What the absurd-usage fault claims.
_ABSURD = (-1, 10**18)

_ID_PREFIX = {
    Endpoint.CHAT: "chatcmpl-sim",
    Endpoint.COMPLETIONS: "cmpl-sim",
    Endpoint.EMBEDDINGS: "emb-sim",
    Endpoint.RESPONSES: "resp_sim",
}
_CHAT = (
    b'{"id":"%b","object":"chat.completion","created":%d,"model":%b,"choices":[%b],'
    b'"service_tier":"default","system_fingerprint":"simulator"%b}'
)
_CHAT_CHOICE = (
    b'{"index":%d,"message":{"role":"assistant","content":%b,"refusal":null},"logprobs":null,'
    b'"finish_reason":"%b"}'
)
_COMPLETION = (
    b'{"id":"%b","object":"text_completion","created":%d,"model":%b,"choices":[%b],'
    b'"system_fingerprint":"simulator"%b}'
)
_COMPLETION_CHOICE = b'{"index":%d,"text":%b,"logprobs":null,"finish_reason":"%b"}'
_RESPONSE = (
    b'{"id":"%b","object":"response","created_at":%d,"status":"completed","error":null,'
    b'"incomplete_details":null,"instructions":null,"metadata":{},"model":%b,"output":[%b],'
    b'"parallel_tool_calls":true,"temperature":1.0,"tool_choice":"auto","tools":[],"top_p":1.0%b}'
)
_RESPONSE_ITEM = (
    b'{"type":"message","id":"msg_%b","status":"completed","role":"assistant",'
    b'"content":[{"type":"output_text","text":%b,"annotations":[]}]}'
)
_CHAT_USAGE = (
    b',"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,'
    b'"prompt_tokens_details":{"cached_tokens":%d,"audio_tokens":0},'
    b'"completion_tokens_details":{"reasoning_tokens":%d,"audio_tokens":0}}'
)
_RESPONSE_USAGE = (
    b',"usage":{"input_tokens":%d,"output_tokens":%d,"total_tokens":%d,'
    b'"input_tokens_details":{"cached_tokens":%d},'
    b'"output_tokens_details":{"reasoning_tokens":%d}}'
)
_EMBEDDING_USAGE = b',"usage":{"prompt_tokens":%d,"total_tokens":%d}'


def answer_id(call: Call) -> str:
    """The id in the answer; the log has it too, so an output line can be traced to its call."""
    return f"{_ID_PREFIX[call.endpoint]}{call.number:09d}"


def finish_reason(call: Call) -> bytes:
    """`length` if the request's own cap ended the answer."""
    return b"length" if call.completion_tokens == call.token_cap else b"stop"


def total_completion_tokens(call: Call) -> int:
    """Tokens of all choices together, as the usage says."""
    return call.completion_tokens * call.choices


def answer_text(call: Call) -> bytes:
    """The answer's text as JSON: `[request key] word word …`, one word a token."""
    words = _WORDS[: call.completion_tokens * len(_WORD) - 1]
    if call.key is None:
        return b'"%b"' % words
    return b'"[%b] %b"' % (msgspec.json.encode(call.key)[1:-1], words)


def answer_body(call: Call, usage: bytes | None = None) -> bytes:
    """The whole answer; `usage` stands in for the true usage if given."""
    if usage is None:
        usage = usage_json(call)
    head = answer_id(call).encode(), int(time.time()), msgspec.json.encode(call.model)
    match call.endpoint:
        case Endpoint.CHAT:
            return _CHAT % (*head, _choices(call, _CHAT_CHOICE), usage)
        case Endpoint.COMPLETIONS:
            return _COMPLETION % (*head, _choices(call, _COMPLETION_CHOICE), usage)
        case Endpoint.RESPONSES:
            return _RESPONSE % (*head, _RESPONSE_ITEM % (head[0], answer_text(call)), usage)
        case Endpoint.EMBEDDINGS:
            data = b",".join(_embedding(call, i) for i in range(len(call.inputs)))
            return b'{"object":"list","data":[%b],"model":%b%b}' % (data, head[2], usage)


def _choices(call: Call, template: bytes) -> bytes:
    text, reason = answer_text(call), finish_reason(call)
    if call.choices == 1:
        return template % (0, text, reason)
    return b",".join(template % (i, text, reason) for i in range(call.choices))


def usage_json(call: Call, tokens: tuple[int, int] | None = None) -> bytes:
    """`,"usage":{…}` as it stands at the end of an answer."""
    prompt, completion = tokens or (call.prompt_tokens, total_completion_tokens(call))
    if call.endpoint is Endpoint.EMBEDDINGS:
        return _EMBEDDING_USAGE % (prompt, prompt + completion)
    template = _RESPONSE_USAGE if call.endpoint is Endpoint.RESPONSES else _CHAT_USAGE
    details = cached_tokens(prompt), reasoning_tokens(completion)
    return template % (prompt, completion, prompt + completion, *details)


def absurd_usage_json(call: Call) -> bytes:
    """Usage that no caller should believe."""
    return usage_json(call, _ABSURD)


def _embedding(call: Call, index: int) -> bytes:
    """A vector that depends only on the input's length and place."""
    step = (call.inputs[index] % 97 + 1) / 100
    vector = [((index + 1) * step * (d + 1)) % 1 - 0.5 for d in range(call.dimensions)]
    if call.base64:
        packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector))
        value = b'"%b"' % packed
    else:
        value = json.dumps([round(v, 6) for v in vector]).encode()
    return b'{"object":"embedding","index":%d,"embedding":%b}' % (index, value)


def error_body(
    message: str,
    kind: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
) -> bytes:
    """OpenAI's error envelope."""
    error = {"message": message, "type": kind, "param": param, "code": code}
    return msgspec.json.encode({"error": error})


def models_body(models: tuple[str, ...]) -> bytes:
    """The answer to GET /v1/models."""
    data = [model_object(name) for name in models]
    return msgspec.json.encode({"object": "list", "data": data})


def model_object(name: str) -> dict[str, str | int]:
    """One entry of the models list."""
    return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "simulator"}
