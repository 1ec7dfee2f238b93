"""Makes the request of a line that names a stored prompt.

    line ─► custom id, fields, variables ─┐
    pin  ─► the plan's pinned version ────┴─► rendered texts ─► body with the line's own fields

Plain texts are filled in at once; the others go through the renderer, and only their lines wait
for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec
from msgspec import Raw

from schemas.records import ClaimCheck, ReadyLine, ReadyLines
from streams.batch_worker.prompts import PromptCache
from streams.batch_worker.request import MAX_MODEL_CHARS, Request, Unsendable
from streams.domain.clock import Clock
from streams.domain.failures import FailureReason
from streams.domain.prompts.pins import PinsError
from streams.domain.prompts.prompt import Prompt
from streams.domain.prompts.request import UseError, prompt_use
from streams.domain.prompts.template import RenderFailed, RenderTimeout, RenderTooLarge
from streams.domain.upstreams import Rewrite
from streams.rendering.renderer import RendererStoppedError


class TextRenderer(Protocol):
    """What renders texts that are not plain (streams.rendering)."""

    async def render(
        self, sources: Sequence[str], variables: bytes, *, fair_key: str
    ) -> list[bytes]: ...


class _Line(msgspec.Struct):
    custom_id: Raw
    body: dict[str, Raw]


class _Asked(NamedTuple):
    """What a line says. model: the name in its own body."""

    custom_id: bytes
    fields: dict[str, Raw]
    variables: dict[str, Raw]
    model: str | None


_line = msgspec.json.Decoder(_Line)
_fields = msgspec.json.Decoder(dict[str, Raw])
_text = msgspec.json.Decoder(str)
_NULL = Raw(b"null")


class PromptRequests:
    """Makes requests of lines with a pin, for all upstreams."""

    def __init__(self, cache: PromptCache, renderer: TextRenderer, clock: Clock) -> None:
        self._cache = cache
        self._renderer = renderer
        self._clock = clock

    async def request(
        self, ready: ReadyLines, item: ReadyLine, raw: bytes, rewrite: Rewrite
    ) -> Request | Unsendable | None:
        """The request of a line in `raw`; None if its window is over.

        rewrite: as for parse_request().
        """
        asked = _asked(raw, ready.endpoint)
        if asked is None:
            return Unsendable(FailureReason.INPUT_LOST)
        try:
            prompt = await self._prompt(ready.pins, item.pin, ready.deadline_ms)
        except PinsError:
            return Unsendable(FailureReason.INPUT_LOST, asked.custom_id)
        if prompt is None:
            return None
        model = asked.model if asked.model is not None else prompt.model or ""
        asked.fields.update(rewrite.fields(model))
        shown = model[:MAX_MODEL_CHARS]
        try:
            rendered: Sequence[bytes] = ()
            if prompt.sandboxed:
                variables = msgspec.json.encode(asked.variables)
                rendered = await self._renderer.render(
                    prompt.sandboxed, variables, fair_key=ready.batch_id
                )
                if ready.deadline_ms <= self._clock.now_ms():
                    return None
            body = prompt.body(ready.endpoint, asked.fields, asked.variables, rendered)
        except RendererStoppedError:
            # The worker stops: the line is left to be delivered again, as if it had been cut.
            raise asyncio.CancelledError from None
        except RenderFailed:
            return Unsendable(FailureReason.PROMPT_FAILED, asked.custom_id, shown)
        except RenderTimeout:
            return Unsendable(FailureReason.PROMPT_TIMEOUT, asked.custom_id, shown)
        except RenderTooLarge:
            return Unsendable(FailureReason.PROMPT_TOO_LARGE, asked.custom_id, shown)
        return Request(asked.custom_id, body, shown)

    async def _prompt(self, claim: ClaimCheck | None, pin: int, deadline_ms: int) -> Prompt | None:
        if claim is None:
            raise PinsError("a slice with a prompt line lacks its pins")
        pinned = self._cache.kept(claim)
        if pinned is None:
            pinned = await self._cache.fetched(claim, deadline_ms)
        if pinned is None:
            return None
        return pinned.prompt(pin) or await pinned.compiled(pin)


def _asked(raw: bytes, endpoint: str) -> _Asked | None:
    """What the line says; None if intake can't have accepted it."""
    try:
        line = _line.decode(raw)
        fields = line.body
        if "prompt" in fields:
            use = prompt_use(fields, endpoint)
            variables = use.variables if use is not None else {}
        else:
            # Which prompt it is, intake has read; the pin says it.
            given = fields.get("variables")
            variables = {} if given is None or given == _NULL else _fields.decode(given)
        if fields.get("model") == _NULL:
            del fields["model"]
        model = _text.decode(fields["model"]) if "model" in fields else None
        custom_id = bytes(line.custom_id)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, UseError):
        return None
    if not custom_id.startswith(b'"'):
        return None
    return _Asked(custom_id, fields, variables, model)
