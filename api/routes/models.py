"""/v1/models: what the configured upstreams serve."""

from __future__ import annotations

from aiohttp import web

from api import views
from api.errors import NotFound
from api.gateway import GATEWAY
from api.model_catalogue import Model

routes = web.RouteTableDef()


@routes.get("/v1/models")
async def list_models(request: web.Request) -> web.Response:
    """All models."""
    models = await request.app[GATEWAY].catalogue.models()
    return views.answer({"object": "list", "data": [_view(m) for m in models]})


# Names of models hold slashes.
@routes.get("/v1/models/{model:.+}")
async def get(request: web.Request) -> web.Response:
    """One model."""
    name = request.match_info["model"]
    for model in await request.app[GATEWAY].catalogue.models():
        if model.id == name:
            return views.answer(_view(model))
    raise NotFound(f"The model '{name}' does not exist", param="model", code="model_not_found")


def _view(model: Model) -> views.JSON:
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
    }
