"""Stored prompts over HTTP through the openai SDK, and the bodies that a simulator recorded."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from openai import OpenAI, RequestOptions
from openai.types import Batch

from tests.support.batches import Results
from tests.support.prompts import Book, Version

JSON = dict[str, Any]


class Prompts:
    """The routes under /v1/prompts, with the SDK's own retries and errors."""

    def __init__(self, client: OpenAI) -> None:
        self._client = client

    def create(self, slug: str, version: Version, **fields: Any) -> JSON:
        """A new prompt; its version 1 is published."""
        return self._post("/prompts", {"slug": slug, **version.as_request(), **fields})

    def add(self, slug: str, version: Version, key: str | None = None) -> int:
        """The number of a version that is added and not published. key: makes it idempotent."""
        path = f"/prompts/{slug}/versions"
        return int(self._post(path, version.as_request(), key)["version"])

    def version(self, slug: str, number: int) -> JSON:
        """One version."""
        return cast(JSON, self._client.get(f"/prompts/{slug}/versions/{number}", cast_to=object))

    def publish(self, slug: str, version: int | None) -> JSON:
        """Publishes any version, or withdraws."""
        return self._post(f"/prompts/{slug}/publish", {"version": version})

    def get(self, slug: str) -> JSON:
        """The prompt."""
        return cast(JSON, self._client.get(f"/prompts/{slug}", cast_to=object))

    def delete(self, slug: str) -> None:
        """Deletes it."""
        self._client.delete(f"/prompts/{slug}", cast_to=object)

    def batch_from(self, slug: str, rows: Sequence[JSON], **fields: Any) -> str:
        """The id of a batch that the server makes from rows of variables."""
        body = {"slug": slug, "variables": rows, **fields}
        return str(self._post("/batches/from-prompt", body)["id"])

    def make(self, book: Book) -> None:
        """Makes the registry hold what the book says."""
        for slug, versions in book.versions.items():
            self.create(slug, versions[0])
            for number, version in enumerate(versions[1:], 2):
                assert self.add(slug, version) == number
            if book.published[slug] != 1:
                self.publish(slug, book.published[slug])

    def _post(self, path: str, body: JSON, key: str | None = None) -> JSON:
        options: RequestOptions = {} if key is None else {"headers": {"Idempotency-Key": key}}
        return cast(JSON, self._client.post(path, cast_to=object, body=body, options=options))


def pins_shown(batch: Batch) -> dict[tuple[str, int], int]:
    """The batch object's `prompts`: lines by (slug, version)."""
    shown = cast(list[JSON], (batch.model_extra or {})["prompts"])
    pins = {(pin["slug"], pin["version"]): pin["lines"] for pin in shown}
    assert len(pins) == len(shown), "a version may be shown once"
    return pins


def unused_shown(batch: Batch) -> int | None:
    """The batch object's count of lines with unused variables; None if nothing was to warn of."""
    warnings = (batch.model_extra or {})["warnings"]
    return None if warnings is None else int(warnings["unused_variables"])


class Recorded:
    """The bodies that `simulate --bodies FILE` wrote, by request key, in the order they came."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def by_key(self, prefix: str = "") -> dict[str, list[tuple[str, JSON]]]:
        """(path, body) of each request whose key begins so; a field may be there only once."""
        found: dict[str, list[tuple[str, JSON]]] = defaultdict(list)
        with self._path.open(encoding="utf-8") as lines:
            for text in lines:
                if not text.endswith("\n"):
                    break  # the simulator is writing it now
                line = json.loads(text)
                key = line["key"] or ""
                if key.startswith(prefix):
                    body = json.loads(line["body"], object_pairs_hook=_once)
                    found[key].append((line["path"], body))
        return dict(found)

    def with_text(self, text: str) -> list[JSON]:
        """The bodies that no key names and that hold this text somewhere, in any order."""
        return [body for _, body in self.by_key().get("", []) if text in json.dumps(body)]


def _once(pairs: Sequence[tuple[str, Any]]) -> JSON:
    fields = dict(pairs)
    assert len(fields) == len(pairs), "a field was sent twice"
    return fields


def exact(body: Any) -> str:
    """A body in a form that tells 1, 1.0 and true apart, whatever the order of its fields."""
    return json.dumps(body, sort_keys=True)


def check_bodies(
    recorded: Recorded, book: Book, lines: Sequence[Mapping[str, Any]], prefix: str
) -> int:
    """Every line was sent, each time with exactly the body that the book says; the requests."""
    sent = recorded.by_key(prefix)
    assert sent.keys() == {line["body"]["user"] for line in lines}, "every line, and nothing else"
    for line in lines:
        wanted = exact(book.body(line))
        for path, body in sent[line["body"]["user"]]:
            assert path == line["url"]
            assert exact(body) == wanted, f"{line['custom_id']} was sent another body"
    return sum(map(len, sent.values()))


def error_codes(results: Results) -> dict[str, str]:
    """The error file's codes by custom id."""
    return {line["custom_id"]: line["error"]["code"] for line in results.error}
