"""Renders a stored prompt for its author, as a batch-worker would for a line. Calls no model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from api import checks
from api.errors import InvalidRequest, Unavailable
from api.gateway import Gateway
from api.prompts import views as prompt_views
from api.prompts.request import RenderRequest
from api.views import JSON
from schemas.errors import LINE_MESSAGES, LineCode
from schemas.records import PromptVersion
from streams.domain.prompts.prompt import Prompt, PromptError, VariableRefusal
from streams.domain.prompts.request import PROMPT_ENDPOINTS
from streams.domain.prompts.template import (
    RenderError,
    RenderFailed,
    RenderTimeout,
    RenderTooLarge,
)
from streams.rendering.renderer import RendererStoppedError

_CODES: dict[type[RenderError], LineCode] = {
    RenderFailed: LineCode.PROMPT_RENDER_FAILED,
    RenderTimeout: LineCode.PROMPT_RENDER_TIMEOUT,
    RenderTooLarge: LineCode.PROMPT_TOO_LARGE,
}


async def preview(gateway: Gateway, text: PromptVersion, asked: RenderRequest, number: int) -> JSON:
    """The rendering of version `number`. Raises InvalidRequest, Unavailable, TimeoutError."""
    prompt = await compiled(gateway, text)
    refusal = prompt.refusal(asked.variables)
    if refusal is not None:
        raise refused(refusal, "variables")
    with render_errors("variables"):
        rendered = await filled_texts(gateway, prompt, text.tenant, asked.variables_json)
        messages = prompt.messages(asked.endpoint, asked.variables, rendered)
        body = prompt.body(asked.endpoint, asked.body, asked.variables, rendered)
    field = PROMPT_ENDPOINTS[asked.endpoint]
    return prompt_views.rendering(text.slug, number, field, messages, body)


async def filled_texts(
    gateway: Gateway, prompt: Prompt, tenant: str, variables_json: bytes
) -> list[bytes]:
    """The texts that only a template process renders. Raises RenderError, TimeoutError."""
    if not prompt.sandboxed:
        return []
    async with asyncio.timeout(gateway.timeouts.preview_s):
        return await gateway.renderer.render(prompt.sandboxed, variables_json, fair_key=tenant)


@contextmanager
def render_errors(param: str) -> Iterator[None]:
    """Turns what rendering raises into InvalidRequest and Unavailable; param: the variables'."""
    try:
        yield
    except RenderError as error:
        code = _CODES.get(type(error), LineCode.PROMPT_RENDER_FAILED)
        raise InvalidRequest(LINE_MESSAGES[code], param=param, code=code.value) from error
    except RendererStoppedError as error:
        raise Unavailable("The server is stopping.", code="unavailable") from error


async def compiled(gateway: Gateway, text: PromptVersion) -> Prompt:
    """A version, ready to render. Raises InvalidRequest."""
    try:
        return await gateway.prompt_facts.compiled(text.messages, text.model_config)
    except PromptError as error:
        # It was good when it was stored; this server's rules have changed since.
        raise InvalidRequest(error.message, param=error.param, code="invalid_value") from error


def refused(refusal: VariableRefusal, param: str) -> InvalidRequest:
    """The error for a variable; param: what holds the variables."""
    name = checks.shortened(refusal.name)
    if refusal.why == "missing":
        message, code = f"The prompt needs the variable '{name}'.", "missing_required_parameter"
    else:
        message, code = f"The prompt can't use null as its variable '{name}'.", "invalid_value"
    return InvalidRequest(message, param=f"{param}.{name}", code=code)
