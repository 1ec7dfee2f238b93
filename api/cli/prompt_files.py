"""A prompt's version in a file: what `prompts show` prints, and `create` and `add` read.

slug: summarize                  the prompt's name; optional
description: Short summaries.    optional
messages:
- role: system
  content: Summarize {{text}} in one sentence.
model_config:                    fields for each request; optional
  model: gpt-4o-mini
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api.cli import plain_yaml
from api.cli.failure import Misuse
from api.cli.http import Json

_NAMES = ("slug", "description", "messages", "model_config")


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A version of a prompt, with the prompt's slug and description where they are said."""

    slug: str | None = None
    description: str | None = None
    messages: list[Any]
    model_config: Mapping[str, Any] = field(default_factory=dict)

    def body(self) -> Json:
        """What the server needs for a version."""
        return {"messages": self.messages, "model_config": dict(self.model_config)}

    def yaml(self) -> str:
        """The file."""
        names = {"slug": self.slug, "description": self.description}
        shown: Json = {name: text for name, text in names.items() if text is not None}
        shown["messages"] = self.messages
        if self.model_config:
            shown["model_config"] = dict(self.model_config)
        return plain_yaml.write(shown)


def read_definition(where: str) -> Definition:
    """A YAML or JSON file; `-` is stdin. Raises Misuse."""
    found = read_object(where, "a prompt")
    for name in found:
        if name not in _NAMES:
            raise Misuse(
                f"{where}: there is no {name!r} in a prompt.", f"Known: {_listed(_NAMES)}."
            )
    for name in ("slug", "description"):
        if not isinstance(found.get(name), str | None):
            raise Misuse(f"{where}: `{name}` must be a text.")
    if not isinstance(found.get("messages"), list):
        raise Misuse(
            f"{where}: `messages` must be a list.",
            "An entry is {role: system, content: …} or {role: user, content: …}.",
        )
    config = found.get("model_config")
    if config is not None and not isinstance(config, dict):
        raise Misuse(f"{where}: `model_config` must be an object of request fields.")
    return Definition(
        slug=found.get("slug"),
        description=found.get("description"),
        messages=found["messages"],
        model_config=config or {},
    )


def read_object(where: str, what: str) -> Json:
    """The object in a YAML or JSON file; `-` is stdin. Raises Misuse."""
    try:
        found = plain_yaml.read(_read(where))
    except plain_yaml.NotPlain as error:
        raise Misuse(f"{where} is neither JSON nor YAML: {error}.") from error
    if not isinstance(found, dict):
        raise Misuse(f"{where} holds no object ({what}).")
    return found


def read_text(where: str) -> str:
    """A text file, or stdin; without the line break at its end. Raises Misuse."""
    try:
        text = _read(where).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Misuse(f"{where} is not UTF-8.") from error
    return text.removesuffix("\n").removesuffix("\r")


def _read(where: str) -> bytes:
    try:
        if where == "-":
            data = sys.stdin.buffer.read(plain_yaml.MAX_BYTES + 1)
        else:
            with Path(where).open("rb") as file:
                data = file.read(plain_yaml.MAX_BYTES + 1)
    except OSError as error:
        raise Misuse(f"{where} can't be read: {error.strerror}.") from error
    if len(data) > plain_yaml.MAX_BYTES:
        raise Misuse(f"{where} has more than {plain_yaml.MAX_BYTES >> 20} MiB.")
    return data


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names)
