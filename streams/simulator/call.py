"""One request to the simulated server, reduced to what its answer depends on.

Which request it is, is told by the *request key*: the body's `user`, or else its `metadata.key`.
A batch line may carry either, so tests can count how often each line was really sent.
`metadata.sim` may script what happens at each attempt of its key, such as `503*2,cut,ok`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from enum import Enum
from typing import Any

import msgspec

from streams.simulator.conduct import MAX_COMPLETION_TOKENS

#: Longer keys are cut, so that a count's memory is bounded.
MAX_KEY_CHARS = 256
_MAX_CHOICES = 128
_MAX_INPUTS = 4096
_MAX_DIMENSIONS = 4096
_CHARS_PER_TOKEN = 4
_MAX_PRIORITY = 1 << 31


class Endpoint(Enum):
    """The inference endpoints; the value is the path."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"
    RESPONSES = "/v1/responses"


class BadRequestError(ValueError):
    """The request is wrong in a way that a real server refuses with 400; param names the field."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class Call(msgspec.Struct, kw_only=True):
    """One request.

    choices: answers asked for. inputs: texts to embed, as their lengths in characters.
    priority: as vLLM takes it, lower goes first.
    attempt: which time this key is seen, from 1. number: which request of the server this is.
    """

    endpoint: Endpoint
    model: str
    key: str | None
    script: str | None
    stream: bool
    include_usage: bool
    prompt_chars: int
    token_cap: int
    choices: int = 1
    inputs: tuple[int, ...] = ()
    dimensions: int = 8
    base64: bool = False
    attempt: int = 1
    number: int = 0
    priority: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def count_tokens(self, low: int, high: int) -> None:
        """Fills in the usage; the rule is part of the simulator's contract (see usage_of)."""
        self.prompt_tokens, self.completion_tokens = usage_of(
            self.prompt_chars, self.token_cap, low, high
        )
        if self.endpoint is Endpoint.EMBEDDINGS:
            self.completion_tokens = 0

    def chance(self, seed: int, purpose: str) -> int:
        """A 64-bit number that depends on nothing but (seed, purpose, key, attempt)."""
        who = f"k{self.key}" if self.key is not None else f"n{self.number}"
        text = f"{seed}\0{purpose}\0{self.attempt}\0{who}"
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "big")


def usage_of(prompt_chars: int, token_cap: int, low: int, high: int) -> tuple[int, int]:
    """(prompt tokens, completion tokens) of a request.

    Prompt tokens are the characters of all texts of the prompt divided by 4, at least 1.
    Completion tokens are low + characters % (high - low + 1), at most what the request allows,
    for each choice.
    """
    completion = min(low + prompt_chars % (high - low + 1), token_cap)
    return max(1, prompt_chars // _CHARS_PER_TOKEN), completion


def cached_tokens(prompt_tokens: int) -> int:
    """How many of the prompt's tokens are said to come from the prefix cache: a quarter."""
    return prompt_tokens // 4


def reasoning_tokens(completion_tokens: int) -> int:
    """How many of the completion's tokens are said to be reasoning: a quarter."""
    return completion_tokens // 4


def parse_call(endpoint: Endpoint, body: bytes) -> Call:
    """The call in a request's body. Raises BadRequestError."""
    try:
        data = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequestError("We could not parse the JSON body of your request.") from None
    if not isinstance(data, dict):
        raise BadRequestError("The request's body must be a JSON object.")
    model = data.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequestError("you must provide a model parameter", "model")
    metadata = data.get("metadata")
    if not isinstance(metadata, dict):
        metadata = {}
    key = data.get("user")
    if not isinstance(key, str):
        key = metadata.get("key")
    script = metadata.get("sim")
    options = data.get("stream_options")
    call = Call(
        endpoint=endpoint,
        model=model,
        key=key[:MAX_KEY_CHARS] if isinstance(key, str) else None,
        script=script if isinstance(script, str) else None,
        stream=data.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        prompt_chars=0,
        token_cap=_token_cap(data),
        priority=_priority(data),
    )
    _FILL[endpoint](call, data)
    return call


def _priority(data: dict[str, Any]) -> int:
    value = data.get("priority", 0)
    if not isinstance(value, int) or abs(value) > _MAX_PRIORITY:
        raise BadRequestError("priority must be a whole number.", "priority")
    return value


def _token_cap(data: dict[str, Any]) -> int:
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        value = data.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or value < 1:
            raise BadRequestError(f"{name} must be at least 1.", name)
        return min(value, MAX_COMPLETION_TOKENS)
    return MAX_COMPLETION_TOKENS


def _fill_chat(call: Call, data: dict[str, Any]) -> None:
    messages = data.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("Missing required parameter: 'messages'.", "messages")
    call.prompt_chars = _message_chars(messages, "messages")
    call.choices = _choices(data)


def _fill_completions(call: Call, data: dict[str, Any]) -> None:
    prompt = data.get("prompt", "<|endoftext|>")
    lengths = _text_lengths(prompt, "prompt")
    call.prompt_chars = sum(lengths)
    call.choices = min(_choices(data) * len(lengths), _MAX_CHOICES)


def _fill_embeddings(call: Call, data: dict[str, Any]) -> None:
    if "input" not in data:
        raise BadRequestError("Missing required parameter: 'input'.", "input")
    call.inputs = _text_lengths(data["input"], "input")
    call.prompt_chars = sum(call.inputs)
    call.base64 = data.get("encoding_format") == "base64"
    dimensions = data.get("dimensions", call.dimensions)
    if not isinstance(dimensions, int) or not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise BadRequestError(f"dimensions must be from 1 to {_MAX_DIMENSIONS}.", "dimensions")
    call.dimensions = dimensions
    call.stream = False


def _fill_responses(call: Call, data: dict[str, Any]) -> None:
    given = data.get("input")
    if isinstance(given, str):
        call.prompt_chars = len(given)
    elif isinstance(given, list) and given:
        call.prompt_chars = _message_chars(given, "input")
    else:
        raise BadRequestError("Missing required parameter: 'input'.", "input")
    instructions = data.get("instructions")
    if isinstance(instructions, str):
        call.prompt_chars += len(instructions)


_FILL = {
    Endpoint.CHAT: _fill_chat,
    Endpoint.COMPLETIONS: _fill_completions,
    Endpoint.EMBEDDINGS: _fill_embeddings,
    Endpoint.RESPONSES: _fill_responses,
}


def _choices(data: dict[str, Any]) -> int:
    value = data.get("n")
    if value is None:
        return 1
    if not isinstance(value, int) or not 1 <= value <= _MAX_CHOICES:
        raise BadRequestError(f"n must be from 1 to {_MAX_CHOICES}.", "n")
    return value


def _message_chars(messages: list[Any], param: str) -> int:
    total = 0
    for message in messages:
        if not isinstance(message, dict):
            raise BadRequestError(f"Every item of '{param}' must be an object.", param)
        content = message.get("content")
        if isinstance(content, str):
            total += len(content)
        elif isinstance(content, list):
            total += _part_chars(content)
    return total


def _part_chars(parts: Iterable[Any]) -> int:
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return sum(len(text) for text in texts if isinstance(text, str))


def _text_lengths(value: Any, param: str) -> tuple[int, ...]:
    """Lengths in characters of a text, a list of texts, or token lists (4 characters a token)."""
    if isinstance(value, str):
        return (len(value),)
    if isinstance(value, list) and 0 < len(value) <= _MAX_INPUTS:
        if all(isinstance(item, str) for item in value):
            return tuple(len(item) for item in value)
        if all(isinstance(item, int) for item in value):
            return (len(value) * _CHARS_PER_TOKEN,)
        if all(isinstance(item, list) for item in value):
            return tuple(len(item) * _CHARS_PER_TOKEN for item in value)
    raise BadRequestError(f"'{param}' must be a text, a list of texts, or tokens.", param)
