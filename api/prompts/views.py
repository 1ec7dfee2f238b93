"""Stored prompts as the JSON objects that callers see."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Raw

from api.prompts.facts import Facts
from api.views import JSON
from schemas.records import PromptHead, PromptVersion, PromptVersionRef


def prompt(head: PromptHead, facts: Facts, *, versions: bool = True) -> JSON:
    """A Prompt. facts: of its published version. versions: whether to list them."""
    found: JSON = {
        "id": head.prompt_id,
        "object": "prompt",
        "slug": head.slug,
        "description": head.description,
        "created_at": head.created_at_ms // 1000,
        "updated_at": head.updated_at_ms // 1000,
        "published_version": head.published,
        "latest_version": head.latest,
        "variables": facts.variables,
    }
    if versions:
        found["versions"] = [
            {
                "version": ref.number,
                "created_at": ref.created_at_ms // 1000,
                "published": ref.number == head.published,
            }
            for ref in head.versions
        ]
    return found


def version(head: PromptHead, ref: PromptVersionRef, text: PromptVersion, facts: Facts) -> JSON:
    """A Version, with its text as it was sent."""
    return {
        "object": "prompt.version",
        "slug": head.slug,
        "version": ref.number,
        "created_at": ref.created_at_ms // 1000,
        "published": ref.number == head.published,
        "messages": Raw(text.messages),
        "model_config": Raw(text.model_config),
        "variables": facts.variables,
        "required_variables": facts.required,
    }


def version_page(data: Sequence[JSON], *, has_more: bool) -> JSON:
    """A list of versions; a version's number is its id within the prompt."""
    return {
        "object": "list",
        "data": data,
        "first_id": str(data[0]["version"]) if data else None,
        "last_id": str(data[-1]["version"]) if data else None,
        "has_more": has_more,
    }


def rendering(slug: str, number: int, field: str, messages: bytes, body: bytes) -> JSON:
    """A preview. field: 'messages' or 'input'."""
    return {
        "object": "prompt.rendering",
        "slug": slug,
        "version": number,
        field: Raw(messages),
        "body": Raw(body),
    }
