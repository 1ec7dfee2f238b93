"""Templates that are more than text with `{{name}}` in it: checked and rendered with Jinja2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from streams.domain.prompt_template import RenderFailed, TemplateError


class Analysis(NamedTuple):
    """What a template reads: all variables, those that must be given, those never null."""

    variables: frozenset[str]
    required: frozenset[str]
    not_null: frozenset[str]


def analyse(source: str) -> Analysis:
    """The variables of a template that only the sandbox can render. Raises TemplateError."""
    raise TemplateError("Only text and {{ name }} are allowed in this template.")


class Sandbox:
    """Renders templates; keeps those that it compiled."""

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        """The template's text with these variables. Raises RenderError."""
        raise RenderFailed
