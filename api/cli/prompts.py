"""`backhaul prompts`: stored prompts and their versions."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from api.cli.failure import Different, Failure, Misuse, ServerRefused
from api.cli.http import Json
from api.cli.options import APIKey, AsJSON, BaseURL, DataDir, client_for
from api.cli.prompt_client import PromptClient, checked_slug
from api.cli.prompt_options import (
    ConfigFile,
    DefinitionFile,
    Endpoint,
    IfMatch,
    ModelName,
    Slug,
    SystemFile,
    Temperature,
    UserFile,
    VersionNumber,
    definition_from,
    etag_of,
    variables_from,
)
from api.cli.prompt_view import (
    PROMPTS_HEADER,
    VERSIONS_HEADER,
    difference,
    names_of,
    print_table,
    prompt_row,
    rendered_lines,
    rendered_texts,
    shown,
    version_row,
)
from api.cli.terminal import note, out, out_json, printable

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Stored prompts, which lines of a batch name by their slug.",
    epilog=(
        "A prompt's texts hold placeholders, {{name}}, that each line fills with its variables. "
        "Versions never change; the published one is what lines without prompt_version get. "
        "`backhaul submit --prompt SLUG --variables rows.csv` runs a batch."
    ),
)


@app.command()
def create(
    slug: Annotated[
        str | None, typer.Argument(metavar="[SLUG]", help="Default: the `slug` in --file.")
    ] = None,
    file: DefinitionFile = None,
    system: SystemFile = None,
    user: UserFile = None,
    model: ModelName = None,
    temperature: Temperature = None,
    config: ConfigFile = None,
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Make a prompt. Its first version is published at once.

    From a YAML or JSON file as `prompts show` prints it (--file), or from text
    files (--system and --user). With --json: the Prompt object.
    """
    found = definition_from(file, system, user, model, temperature, config)
    name = checked_slug(slug or found.slug or _no_slug())
    body = found.body()
    if about := found.description if description is None else description:
        body["description"] = about
    with client_for(base_url, api_key, data_dir) as client:
        made = PromptClient(client.http).create(name, body)
    if as_json:
        out_json(made)
        return
    out(f"{name} version {made.get('published_version')} is published")
    note(f"variables: {names_of(made.get('variables'))}")
    note(f"Use it:  backhaul submit --prompt {name} --variables rows.csv")


@app.command()
def add(
    slug: Slug,
    file: DefinitionFile = None,
    system: SystemFile = None,
    user: UserFile = None,
    model: ModelName = None,
    temperature: Temperature = None,
    config: ConfigFile = None,
    publish_too: Annotated[
        bool, typer.Option("--publish", help="Publish it at once, too.")
    ] = False,
    if_match: IfMatch = None,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Add the next version of a prompt; it is not published, unless --publish.

    It comes from the same files as with `create`. With --json: the Version object.
    """
    body = definition_from(file, system, user, model, temperature, config).body()
    with client_for(base_url, api_key, data_dir) as client:
        prompts = PromptClient(client.http)
        made = prompts.add(slug, body, etag_of(if_match))
        number = int(made.get("version") or 0)
        if publish_too:
            prompts.publish(slug, number)
            made = prompts.version(slug, number)
    if as_json:
        out_json(made)
        return
    out(f"{slug} version {number} is {'published' if publish_too else 'added'}")
    note(f"variables: {names_of(made.get('variables'))}")
    if not publish_too:
        note(f"Compare it:  backhaul prompts diff {slug}")
        note(f"Publish it:  backhaul prompts publish {slug} {number}")


@app.command("list")
def list_all(
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """List all prompts. With --json one Prompt object a line."""
    with client_for(base_url, api_key, data_dir) as client:
        print_table(PromptClient(client.http).list(), PROMPTS_HEADER, prompt_row, as_json=as_json)


@app.command()
def versions(
    slug: Slug,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """List a prompt's versions. With --json one Version object a line."""
    with client_for(base_url, api_key, data_dir) as client:
        found = PromptClient(client.http).versions(slug)
        print_table(found, VERSIONS_HEADER, version_row, as_json=as_json)


@app.command()
def show(
    slug: Slug,
    version: VersionNumber = None,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Show a version, as YAML that `create` and `add` take with --file.

    Without --version: the published one, or the latest if none is published.

    With --json: the Prompt object, with the Version object as its `shown`.
    """
    with client_for(base_url, api_key, data_dir) as client:
        prompts = PromptClient(client.http)
        prompt, etag = prompts.get(slug)
        number = version or prompt.get("published_version") or prompt.get("latest_version")
        found = prompts.version(slug, int(number or 0))
    if as_json:
        out_json({**prompt, "shown": found})
        return
    out(shown(prompt, found, etag))


@app.command()
def diff(
    slug: Slug,
    old: Annotated[
        int | None, typer.Argument(metavar="[A]", help="Default: the published version.", min=1)
    ] = None,
    new: Annotated[
        int | None, typer.Argument(metavar="[B]", help="Default: the latest version.", min=1)
    ] = None,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Show how version B differs from version A.

    Ends as `diff` does: exit code 0 if they are the same, 1 if they differ, and
    2 if there is no such prompt or version. With --json: both Version objects.
    """
    with client_for(base_url, api_key, data_dir) as client:
        prompts = PromptClient(client.http)
        try:
            prompt, _ = prompts.get(slug)
            before = prompts.version(slug, old or _published_number(prompt, slug))
            after = prompts.version(slug, new or int(prompt.get("latest_version") or 0))
        except ServerRefused as error:
            # Exit code 1 means that they differ.
            raise Misuse(error.message, error.remedy) from error
    lines = difference(slug, before, after)
    if as_json:
        out_json({"old": before, "new": after, "different": bool(lines)})
    else:
        for line in lines:
            out(line)
    if lines:
        raise Different("")


@app.command()
def publish(
    slug: Slug,
    version: Annotated[int, typer.Argument(metavar="N", help="The version.", min=1)],
    if_match: IfMatch = None,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Publish a version, a new one or an old one: lines without prompt_version get it.

    Batches that were validated before keep theirs. With --json: the Prompt object.
    """
    with client_for(base_url, api_key, data_dir) as client:
        before, after = PromptClient(client.http).publish_seen(slug, version, etag_of(if_match))
    if as_json:
        out_json(after)
        return
    out(f"{slug} version {version} is published")
    earlier = before.get("published_version")
    if earlier and earlier != version:
        note(f"To go back:  backhaul prompts publish {slug} {earlier}")


@app.command()
def withdraw(
    slug: Slug,
    if_match: IfMatch = None,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Publish nothing: lines of new batches must say prompt_version from then on.

    Nothing is deleted. With --json: the Prompt object.
    """
    with client_for(base_url, api_key, data_dir) as client:
        before, after = PromptClient(client.http).publish_seen(slug, None, etag_of(if_match))
    if as_json:
        out_json(after)
        return
    out(f"{slug} has no published version")
    if earlier := before.get("published_version"):
        note(f"To go back:  backhaul prompts publish {slug} {earlier}")


@app.command()
def describe(
    slug: Slug,
    description: Annotated[str, typer.Argument(help='What it is for; "" for nothing.')],
    if_match: IfMatch = None,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Change a prompt's description. With --json: the Prompt object."""
    with client_for(base_url, api_key, data_dir) as client:
        prompts = PromptClient(client.http)
        after = prompts.describe(slug, description or None, etag_of(if_match))
    if as_json:
        out_json(after)
        return
    out(f"{slug}: {printable(description) or 'no description'}")


@app.command()
def render(
    slug: Slug,
    var: Annotated[
        list[str] | None,
        typer.Option("--var", metavar="NAME=TEXT", help="A variable, as a text; repeatable."),
    ] = None,
    variables: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A JSON or YAML file with an object of variables."),
    ] = None,
    version: VersionNumber = None,
    endpoint: Endpoint = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Only the texts, exactly as rendered, for other programs."),
    ] = False,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Show what a version becomes with these variables; no model is called.

    Without --version: the published one.

    With --json: the server's Rendering object; its `body` is the whole request.
    """
    body: Json = {"variables": variables_from(variables, var or [])}
    body |= {k: v for k, v in (("version", version), ("endpoint", endpoint)) if v is not None}
    with client_for(base_url, api_key, data_dir) as client:
        rendering = PromptClient(client.http).render(slug, body)
    if as_json:
        out_json(rendering)
        return
    for line in rendered_texts(rendering) if raw else rendered_lines(rendering):
        out(line)


@app.command()
def delete(
    slug: Slug,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    if_match: IfMatch = None,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Delete a prompt with all its versions, for good.

    Batches that were validated before run on. Asks on a terminal; elsewhere --yes is needed.
    """
    with client_for(base_url, api_key, data_dir) as client:
        prompts = PromptClient(client.http)
        etag = etag_of(if_match)
        if not yes:
            prompt, seen = prompts.get(slug)
            _ask(slug, prompt)
            # What was changed while the question stood was not agreed to.
            etag = etag or seen
        answer = prompts.delete(slug, etag)
    if as_json:
        out_json(answer)
        return
    out(f"{slug} is deleted")


def _published_number(prompt: Json, slug: str) -> int:
    number = prompt.get("published_version")
    if not number:
        raise Misuse(
            f"{slug} has no published version to compare with.",
            f"Name one:  backhaul prompts diff {slug} A [B]",
        )
    return int(number)


def _ask(slug: str, prompt: Json) -> None:
    """Asks whether it shall be deleted. Raises Failure if not."""
    if not _somebody_answers():
        raise Misuse(f"Deleting {slug} needs a yes.", "Give --yes.")
    count = len(prompt.get("versions") or [])
    what = "its one version" if count == 1 else f"its {count} versions"
    if not typer.confirm(f"Delete {slug} with {what}, for good?", err=True):
        raise Failure("Nothing was deleted.")


def _somebody_answers() -> bool:
    return sys.stdin.isatty()


def _no_slug() -> str:
    raise Misuse("The prompt has no slug.", "Give it as SLUG, or as `slug` in the file.")
