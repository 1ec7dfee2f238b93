"""The batch file of `backhaul submit --prompt`: rows of variables become lines of one prompt."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from api.cli.client import Client
from api.cli.failure import Failure, Misuse
from api.cli.http import Json
from api.cli.prompt_client import PromptClient, checked_slug
from api.cli.rows import Rows, open_rows
from api.cli.terminal import console, is_live, note
from api.cli.view import size
from streams.domain.prompts.lines import DEFAULT_ENDPOINT, PromptRef, RowError, batch_lines
from streams.domain.prompts.request import PROMPT_ENDPOINTS

#: Rows between two looks at the progress.
_SHOW_EVERY = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptJob:
    """What the options ask for. rows: a file's path or `-`; save: where the lines are kept."""

    slug: str
    rows: str
    rows_format: str | None = None
    id_column: str | None = None
    keep_id: bool = False
    version: int | None = None
    model: str | None = None
    endpoint: str | None = None
    save: Path | None = None


def job_from(
    slug: str | None,
    rows: str | None,
    *,
    rows_format: str | None,
    id_column: str | None,
    keep_id: bool,
    version: int | None,
    model: str | None,
    endpoint: str | None,
    save: Path | None,
) -> PromptJob | None:
    """The job; None if no prompt is named. Raises Misuse if the options don't fit."""
    if slug is None:
        given = (rows, rows_format, id_column, keep_id or None, version, model, save)
        if any(option is not None for option in given):
            raise Misuse("The options for a batch from a stored prompt need --prompt.")
        return None
    if rows is None:
        raise Misuse("--prompt needs --variables, a file with the rows.")
    if keep_id and id_column is None:
        raise Misuse("--keep-id needs --id-column.")
    if endpoint is not None and endpoint not in PROMPT_ENDPOINTS:
        raise Misuse(
            f"Prompts are not for {endpoint}.", f"They are for {' and '.join(PROMPT_ENDPOINTS)}."
        )
    return PromptJob(
        slug=checked_slug(slug),
        rows=rows,
        rows_format=rows_format,
        id_column=id_column,
        keep_id=keep_id,
        version=version,
        model=model,
        endpoint=endpoint,
        save=save,
    )


@contextmanager
def prompt_file(client: Client, job: PromptJob) -> Iterator[tuple[Path, str]]:
    """The file of lines, which is there until the end, and its endpoint.

    The server is asked for the prompt first, so that what can't work is said before anything is
    sent. Raises Failure.
    """
    ref = PromptRef(
        slug=job.slug,
        version=job.version,
        model=job.model,
        endpoint=job.endpoint or DEFAULT_ENDPOINT,
    )
    with open_rows(job.rows, job.rows_format) as rows, _place(job) as path:
        _check(PromptClient(client.http), job, rows)
        count = _write(path, rows, ref, job)
        note(f"made {count:,} lines ({size(path.stat().st_size)}) of {rows.name}")
        yield _kept(path, job.save), ref.endpoint


@contextmanager
def _place(job: PromptJob) -> Iterator[Path]:
    """A file to write to; beside the one that is asked for, so that it appears there whole."""
    beside = None if job.save is None else job.save.parent
    if job.save is not None and job.save.exists() and not job.save.is_file():
        raise Misuse(f"{job.save} is not a regular file.")
    with contextlib.suppress(OSError):
        if job.save is not None and job.save.samefile(job.rows):
            raise Misuse("--save would overwrite the rows.")
    try:
        folder = tempfile.TemporaryDirectory(prefix=".backhaul-", dir=beside)
    except OSError as error:
        raise Failure(f"{beside or 'A file'} can't be written: {error.strerror}.") from error
    with folder:
        yield Path(folder.name) / f"{job.slug}.jsonl"


def _kept(path: Path, save: Path | None) -> Path:
    """Where the file lies for good."""
    if save is None:
        return path
    try:
        path.replace(save)
    except OSError as error:
        raise Failure(f"{save} can't be written: {error.strerror}.") from error
    note(f"kept them as {save}")
    return save


def _check(prompts: PromptClient, job: PromptJob, rows: Rows) -> None:
    """Refuses what can't work by what the server knows of the prompt. Raises Failure."""
    prompt, _ = prompts.get(job.slug)
    number = job.version or prompt.get("published_version")
    if not number:
        raise Failure(
            f"{job.slug} has no published version.",
            f"Publish one:  backhaul prompts publish {job.slug} N\nOr name one with "
            "--prompt-version.",
        )
    version = prompts.version(job.slug, int(number))
    given = list(rows.columns or rows.first())
    needed = version.get("required_variables") or []
    missing = [name for name in needed if name not in given]
    if missing:
        raise Misuse(
            f"The prompt needs {_listed(missing)}, which {rows.name} does not have.",
            f"It has {_listed(given)}.",
        )
    if job.id_column is not None and job.id_column not in given:
        raise Misuse(f"{rows.name} has no {job.id_column!r}.", f"It has {_listed(given)}.")
    if job.id_column in needed and not job.keep_id:
        raise Misuse(f"The prompt needs {job.id_column!r}, the id column, too.", "Give --keep-id.")
    _check_model(version, job)


def _check_model(version: Json, job: PromptJob) -> None:
    config = version.get("model_config")
    if job.model is None and isinstance(config, dict) and not config.get("model"):
        raise Misuse(f"{job.slug} names no model.", "Give --model.")


def _write(path: Path, rows: Rows, ref: PromptRef, job: PromptJob) -> int:
    """Writes the lines; how many they are."""
    count = 0
    try:
        with path.open("wb") as file, _bar(rows) as show:
            for line in batch_lines(ref, rows, job.id_column, keep_id=job.keep_id):
                file.write(line)
                count += 1
                if count % _SHOW_EVERY == 0:
                    show(rows.bytes_read)
    except RowError as error:
        raise Misuse(f"{rows.place}: the row {error.message}.") from None
    except OSError as error:
        raise Failure(f"{path} can't be written: {error.strerror}.") from error
    return count


@contextmanager
def _bar(rows: Rows) -> Iterator[Callable[[int], object]]:
    """A bar where somebody watches."""
    if not is_live():
        yield lambda _: None
        return
    from rich.progress import Progress

    with Progress(console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("making lines", total=rows.size_bytes)
        yield lambda done: bar.update(task, completed=done)


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"
