"""Stored prompts as people read them. The server's texts are somebody else's: see `printable`."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from api.cli.http import Json
from api.cli.prompt_files import Definition
from api.cli.terminal import note, out, out_json, printable
from api.cli.view import ago

_SLUG_WIDTH = 28
_DESCRIPTION_WIDTH = 22
PROMPTS_HEADER = (
    f"{'PROMPT':<{_SLUG_WIDTH}} {'PUBLISHED':>9} {'LATEST':>6} {'CHANGED':>10} WHAT FOR"
)
VERSIONS_HEADER = f"{'VERSION':>7} {'PUBLISHED':<9} {'CREATED':>10} VARIABLES"


def print_table(
    found: Iterable[Json], header: str, row: Callable[[Json], str], *, as_json: bool
) -> None:
    """Each object as a row, or as a line of JSON."""
    empty = True
    for each in found:
        if as_json:
            out_json(each)
            continue
        if empty:
            out(header)
        empty = False
        out(row(each))
    if empty and not as_json:
        note("No prompts.")


def prompt_row(prompt: Json) -> str:
    """A Prompt object in a list."""
    slug = printable(str(prompt.get("slug")))
    about = _cut(printable(str(prompt.get("description") or "")), _DESCRIPTION_WIDTH)
    return (
        f"{slug:<{_SLUG_WIDTH}} {prompt.get('published_version') or '-':>9} "
        f"{prompt.get('latest_version') or '-':>6} {_ago(prompt.get('updated_at')):>10} {about}"
    ).rstrip()


def version_row(version: Json) -> str:
    """A Version object in a list."""
    published = "published" if version.get("published") else ""
    return (
        f"{version.get('version') or '-':>7} {published:<9} {_ago(version.get('created_at')):>10} "
        f"{names_of(version.get('variables'))}"
    )


def names_of(variables: Any) -> str:
    """`text, title`."""
    names = variables if isinstance(variables, list) else []
    return ", ".join(printable(str(name)) for name in names) or "none"


def shown(prompt: Json, version: Json, etag: str | None) -> str:
    """A version as the file that it could come from, with what else is known in comments."""
    published = prompt.get("published_version")
    state = f"{published} is published" if published else "none is published"
    lines = [
        f"# version {version.get('version')} of {prompt.get('latest_version')}; {state}",
        f"# variables: {names_of(version.get('variables'))}",
    ]
    required = version.get("required_variables")
    if isinstance(required, list) and required != version.get("variables"):
        lines.append(f"# must be given: {names_of(required)}")
    if etag is not None:
        lines.append(f"# etag: {printable(etag)}")
    about = prompt.get("description")
    definition = _definition(
        version, slug=str(prompt.get("slug") or ""), description=str(about) if about else None
    )
    return "\n".join([*lines, definition.yaml().rstrip("\n")])


def difference(slug: str, old: Json, new: Json) -> list[str]:
    """The lines of a unified diff; none if the versions are the same."""
    before, after = (_definition(each).yaml().split("\n") for each in (old, new))
    was, is_ = (f"{slug} version {each.get('version')}" for each in (old, new))
    return list(difflib.unified_diff(before, after, was, is_, lineterm=""))


def rendered_lines(rendering: Json) -> Iterator[str]:
    """A rendering for reading: each message under its role."""
    for number, message in enumerate(_messages(rendering)):
        if number:
            yield ""
        yield f"[{printable(str(message.get('role') or 'unknown'))}]"
        for text in _texts(message):
            yield printable(text, lines=True)


def rendered_texts(rendering: Json) -> Iterator[str]:
    """A rendering's texts, as they are."""
    for message in _messages(rendering):
        yield from _texts(message)


def _definition(
    version: Json, *, slug: str | None = None, description: str | None = None
) -> Definition:
    messages, config = version.get("messages"), version.get("model_config")
    return Definition(
        slug=slug,
        description=description,
        messages=messages if isinstance(messages, list) else [],
        model_config=config if isinstance(config, dict) else {},
    )


def _messages(rendering: Json) -> Iterator[Mapping[str, Any]]:
    found = rendering.get("messages") or rendering.get("input") or []
    for message in found if isinstance(found, list) else []:
        if isinstance(message, dict):
            yield message


def _texts(message: Mapping[str, Any]) -> Iterator[str]:
    """The texts of a message; what is no text, as JSON."""
    content = message.get("content")
    for part in content if isinstance(content, list) else [content]:
        text = part.get("text") if isinstance(part, dict) else part
        if text is not None:
            yield text if isinstance(text, str) else msgspec.json.encode(part).decode()
        elif part is not None:
            yield msgspec.json.encode(part).decode()


def _ago(unix_s: Any) -> str:
    return ago(time.time() - unix_s) if isinstance(unix_s, int) else "-"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
