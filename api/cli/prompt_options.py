"""Options that several `prompts` commands have, and what they mean together."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from api.cli.failure import Misuse
from api.cli.http import Json
from api.cli.prompt_files import Definition, read_definition, read_object, read_text

_PANEL = "The version's text"
_ETAG = re.compile(r'\*|"[\x21\x23-\x7e]*"|[0-9]+', re.ASCII)

Slug = Annotated[str, typer.Argument(metavar="SLUG", help="The prompt's slug.")]
VersionNumber = Annotated[
    int | None, typer.Option("--version", metavar="N", help="The version.", min=1)
]
Endpoint = Annotated[
    str | None,
    typer.Option(help="As for this endpoint.", show_default="/v1/chat/completions"),
]
IfMatch = Annotated[
    str | None,
    typer.Option(
        "--if-match",
        metavar="ETAG",
        help="Only if the prompt still has this etag, which `prompts show` tells.",
    ),
]
DefinitionFile = Annotated[
    str | None,
    typer.Option(
        "--file",
        "-f",
        metavar="FILE",
        help="YAML or JSON with messages and model_config; - is stdin.",
        rich_help_panel=_PANEL,
    ),
]
SystemFile = Annotated[
    str | None,
    typer.Option(
        "--system",
        metavar="FILE",
        help="A text file: the system message. The line break at its end is left out.",
        rich_help_panel=_PANEL,
    ),
]
UserFile = Annotated[
    str | None,
    typer.Option(
        "--user",
        metavar="FILE",
        help="A text file: the user message.",
        rich_help_panel=_PANEL,
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(help="The model, where a line names none.", rich_help_panel=_PANEL),
]
Temperature = Annotated[
    float | None,
    typer.Option(help="The temperature, where a line says none.", rich_help_panel=_PANEL),
]
ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="YAML or JSON with the whole model_config: max_tokens, tools and so on.",
        rich_help_panel=_PANEL,
    ),
]


def definition_from(
    file: str | None,
    system: str | None,
    user: str | None,
    model: str | None,
    temperature: float | None,
    config: str | None,
) -> Definition:
    """The version that the options describe; --model and --temperature win. Raises Misuse."""
    texts = [(role, where) for role, where in (("system", system), ("user", user)) if where]
    if (file is None) == (not texts):
        raise Misuse("Give either --file, or --system or --user or both.")
    if [file, system, user, config].count("-") > 1:
        raise Misuse("Only one of the files can be stdin.")
    found = (
        Definition(messages=[{"role": role, "content": read_text(where)} for role, where in texts])
        if file is None
        else read_definition(file)
    )
    fields: dict[str, Any] = dict(found.model_config)
    if config is not None:
        fields |= read_object(config, "a model_config")
    fields |= {
        name: value
        for name, value in (("model", model), ("temperature", temperature))
        if value is not None
    }
    return Definition(
        slug=found.slug,
        description=found.description,
        messages=found.messages,
        model_config=fields,
    )


def variables_from(file: str | None, pairs: list[str]) -> Json:
    """The variables of a file, and those of NAME=TEXT pairs, which win. Raises Misuse."""
    found = {} if file is None else read_object(file, "variables by name")
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not name or not equals:
            raise Misuse(f"--var {pair!r} is not NAME=TEXT.")
        found[name] = text
    return found


def etag_of(text: str | None) -> str | None:
    """What goes into If-Match; a bare number gets its quotes. Raises Misuse."""
    if text is None:
        return None
    if not _ETAG.fullmatch(text):
        raise Misuse(f"--if-match {text!r} is no etag.", "`backhaul prompts show` tells it.")
    return f'"{text}"' if text.isdigit() else text
