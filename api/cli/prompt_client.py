"""The routes of stored prompts. Answers are the server's JSON objects, whole."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from urllib.parse import quote, urlencode

from api.cli.failure import Misuse, ServerRefused
from api.cli.http import HTTP, Json
from streams.domain.prompts.request import is_slug

_PAGE = 100
_REMEDIES = {
    "prompt_not_found": "`backhaul prompts list` shows which there are.",
    "prompt_version_not_found": "`backhaul prompts versions {slug}` shows which there are.",
    "prompt_exists": "To give it another version:  backhaul prompts add {slug} …",
    "precondition_failed": (
        "Somebody changed it meanwhile. Look at it again:  backhaul prompts show {slug}"
    ),
    "prompt_quota_exceeded": "Delete prompts that nobody uses:  backhaul prompts delete SLUG",
}


class PromptClient:
    """A small client of the prompts API.

    An etag is the server's mark of one state of a prompt; a change that is given one is refused
    if the prompt has another by then.
    """

    def __init__(self, http: HTTP) -> None:
        self._http = http

    def list(self) -> Iterator[Json]:
        """All Prompt objects, fetched page by page as they are asked for."""
        yield from self._pages("/prompts", "")

    def get(self, slug: str) -> tuple[Json, str | None]:
        """The Prompt object, and its etag."""
        with _refusals(slug):
            answer = self._http.ask("GET", _path(slug))
            return self._http.judged(answer), answer.headers.get("etag")

    def versions(self, slug: str) -> Iterator[Json]:
        """Its Version objects, fetched page by page as they are asked for."""
        yield from self._pages(f"{_path(slug)}/versions", slug)

    def version(self, slug: str, number: int) -> Json:
        """The Version object."""
        with _refusals(slug):
            return self._http.json("GET", f"{_path(slug)}/versions/{number}")

    def create(self, slug: str, body: Json) -> Json:
        """The new Prompt object."""
        _path(slug)
        with _refusals(slug):
            return self._http.json("POST", "/prompts", {"slug": slug, **body}, _new_key())

    def add(self, slug: str, body: Json, etag: str | None = None) -> Json:
        """The new Version object."""
        headers = {**_new_key(), **_if_match(etag)}
        with _refusals(slug):
            return self._http.json("POST", f"{_path(slug)}/versions", body, headers)

    def publish(self, slug: str, number: int | None, etag: str | None = None) -> Json:
        """The Prompt object, with this version published, or none."""
        path, body = f"{_path(slug)}/publish", {"version": number}
        with _refusals(slug):
            return self._http.json("POST", path, body, _if_match(etag))

    def publish_seen(self, slug: str, number: int | None, etag: str | None) -> tuple[Json, Json]:
        """Publishes; the Prompt object before and after.

        Without an etag it is that of just now: two who publish at once don't undo each other
        unseen.
        """
        before, seen = self.get(slug)
        try:
            return before, self.publish(slug, number, etag or seen)
        except ServerRefused as error:
            if error.code != "precondition_failed" or etag:
                raise
            # An answer that got lost makes the second try look like somebody else's change.
            after, _ = self.get(slug)
            if after.get("published_version") != number:
                raise
            return before, after

    def describe(self, slug: str, description: str | None, etag: str | None = None) -> Json:
        """The Prompt object, with this description."""
        with _refusals(slug):
            body = {"description": description}
            return self._http.json("PATCH", _path(slug), body, _if_match(etag))

    def delete(self, slug: str, etag: str | None = None) -> Json:
        """What the server says of the deleted prompt."""
        with _refusals(slug):
            return self._http.json("DELETE", _path(slug), None, _if_match(etag))

    def render(self, slug: str, body: Json) -> Json:
        """The Rendering object."""
        with _refusals(slug):
            return self._http.json("POST", f"{_path(slug)}/render", body)

    def _pages(self, path: str, slug: str) -> Iterator[Json]:
        query = {"limit": str(_PAGE)}
        while True:
            with _refusals(slug):
                answer = self._http.json("GET", f"{path}?{urlencode(query)}")
            found = answer.get("data") or []
            yield from found
            if not answer.get("has_more") or not found:
                return
            query["after"] = str(answer.get("last_id"))


def checked_slug(slug: str) -> str:
    """The slug, if a prompt may be called that. Raises Misuse."""
    if not is_slug(slug):
        raise Misuse(
            f"{slug!r} can't be a prompt's slug.",
            "A slug has 1 to 128 letters, digits, dots, dashes and underscores, and begins with a "
            "letter or digit.",
        )
    return slug


def _path(slug: str) -> str:
    return f"/prompts/{quote(checked_slug(slug), safe='')}"


def _new_key() -> Mapping[str, str]:
    """Makes the request safe to send again."""
    return {"Idempotency-Key": f"cli-{secrets.token_hex(16)}"}


def _if_match(etag: str | None) -> Mapping[str, str]:
    return {} if etag is None else {"If-Match": etag}


@contextmanager
def _refusals(slug: str) -> Iterator[None]:
    """Adds what may be done about the server's refusal."""
    try:
        yield
    except ServerRefused as error:
        remedy = _REMEDIES.get(error.code or "", "").format(slug=slug)
        if error.status == HTTPStatus.NOT_FOUND and error.code is None:
            remedy = "The server has no stored prompts; it may be older than this command."
        raise ServerRefused(
            error.message,
            error.remedy or remedy,
            status=error.status,
            code=error.code,
            param=error.param,
        ) from error
