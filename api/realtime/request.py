"""What a real-time request's body asks: a model that is served, and perhaps a stored prompt."""

from __future__ import annotations

import random

import msgspec
from aiohttp import web
from msgspec import Raw

from api.auth import TENANT
from api.errors import InvalidRequest, NotFound, TooLarge
from api.gateway import GATEWAY, Gateway
from api.http.body import not_json, not_object, read_body
from api.prompts.preview import compiled, filled_texts, refused, render_errors
from api.realtime.lane import Asked
from api.routes.prompt_versions import found_version
from streams.domain.intake.lines import model_without_price
from streams.domain.prompts.request import PromptUse, UseError, prompt_use

#: Largest body of a request.
MAX_BODY_BYTES = 2 * 1024 * 1024
#: Largest body after its prompt was rendered: it must fit into a record.
MAX_RENDERED_BYTES = 3 * 1024 * 1024
_MAX_MODEL = 256
_NULL = Raw(b"null")
_fields = msgspec.json.Decoder(dict[str, Raw])


async def read_request(request: web.Request) -> Asked:
    """The request, ready to be sent. Raises ApiError."""
    gateway, endpoint = request.app[GATEWAY], request.path
    raw = await read_body(request, MAX_BODY_BYTES)
    fields = _decoded(raw)
    try:
        use = prompt_use(fields, endpoint)
    except UseError as error:
        raise InvalidRequest(error.message, param=error.param, code="invalid_value") from error
    stream = _stream(fields.get("stream", _NULL))
    model = _model(fields.get("model", _NULL))
    if use is not None:
        raw, model = await _rendered(gateway, request[TENANT], endpoint, fields, use, model)
    if not model:
        raise InvalidRequest("you must provide a model parameter", param="model")
    pools = gateway.upstreams.pools_for(model)
    if not pools:
        raise NotFound(
            f"The model '{model}' does not exist or you do not have access to it.",
            param="model",
            code="model_not_found",
        )
    if not gateway.prices.allows(model, endpoint, gateway.clock.now_ms()):
        raise NotFound(model_without_price(model).message, param="model", code="model_not_found")
    return Asked(
        endpoint=endpoint,
        model=model,
        pool=random.choice(pools).name,
        stream=stream,
        body=raw,
    )


def _decoded(raw: bytes) -> dict[str, Raw]:
    try:
        msgspec.json.decode(raw)
        return _fields.decode(raw)
    except msgspec.ValidationError as error:
        raise not_object() from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise not_json() from error


def _stream(raw: Raw) -> bool:
    # Some upstreams take "true" or 1 for true: it would stream without telling its usage.
    if raw not in (_NULL, Raw(b"true"), Raw(b"false")):
        raise InvalidRequest(
            "Invalid type for 'stream': expected a boolean.", param="stream", code="invalid_type"
        )
    return raw == Raw(b"true")


def _model(raw: Raw) -> str:
    if raw == _NULL:
        return ""
    try:
        model = msgspec.json.decode(raw, type=str)
    except msgspec.DecodeError as error:
        raise InvalidRequest(
            "Invalid type for 'model': expected a string.", param="model", code="invalid_type"
        ) from error
    if len(model) > _MAX_MODEL:
        raise NotFound("There is no model with such a long name.", code="model_not_found")
    return model


async def _rendered(
    gateway: Gateway,
    tenant: str,
    endpoint: str,
    fields: dict[str, Raw],
    use: PromptUse,
    model: str,
) -> tuple[bytes, str]:
    """The body with its prompt rendered, and its model."""
    try:
        found = await found_version(gateway, tenant, use.slug, use.version)
    except (NotFound, InvalidRequest) as error:
        # What the body names is wrong, not the address that was asked.
        param = use.names.slug if use.version is None else use.names.version
        raise InvalidRequest(error.message, param=param, code=error.code) from error
    prompt = await compiled(gateway, found.text)
    refusal = prompt.refusal(use.variables)
    if refusal is not None:
        raise refused(refusal, use.names.variables)
    if not model:
        fields.pop("model", None)
    with render_errors(use.names.variables):
        variables_json = msgspec.json.encode(use.variables)
        texts = await filled_texts(gateway, prompt, tenant, variables_json)
        body = prompt.body(endpoint, fields, use.variables, texts)
    if len(body) > MAX_RENDERED_BYTES:
        raise TooLarge("The rendered prompt is larger than this server allows.")
    return body, model or prompt.model or ""
