"""Publishing in a loop and creating batches in a loop while processes are killed, and the audit.

What must hold: a batch's pins, once shown, never change; every body that was sent renders exactly
the pinned version; a publish that was acknowledged counts for every batch created afterwards, and
is never lost.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from openai import OpenAI
from openai.types import Batch

from tests.acceptance.chaos import client_of, patiently
from tests.support.batches import ENDED, Results, check_conservation, results_of
from tests.support.prompt_api import Prompts, Recorded, check_bodies, pins_shown
from tests.support.prompts import Book, Version, mixed_jsonl, prompt_line
from tests.support.stack import Stack
from tests.support.waiting import deadline_in

Pins = dict[tuple[str, int], int]
_POLL_S = 0.2


def version_of(slug: str, number: int) -> Version:
    """The text of a version; it says which one it is. Every other one needs the sandbox."""
    said = f"{slug}@{number} says "
    if number % 2:
        return Version([{"role": "user", "content": said + "{{ text }}"}])
    template = said + "{% if text %}{{ text }}{% endif %}"
    return Version([{"role": "user", "content": template}], by_hand=lambda v: [said + v["text"]])


class Publisher:
    """Adds a version and publishes it, again and again; knows what was acknowledged."""

    def __init__(self, stack: Stack, slug: str) -> None:
        self.slug = slug
        #: The last version whose publish was acknowledged, and the last that may be published.
        self.acknowledged = 1
        self.begun = 1
        self._stack = stack

    def create(self) -> None:
        """Makes the prompt with its version 1."""
        with client_of(self._stack) as client:
            patiently(lambda: Prompts(client).create(self.slug, version_of(self.slug, 1)))

    def step(self) -> None:
        """Publishes one more version, however often it must be asked for."""
        number = self.begun + 1
        self.begun = number
        with client_of(self._stack) as client:
            prompts = Prompts(client)
            key = f"{self.slug}-{number}"
            added = patiently(lambda: prompts.add(self.slug, version_of(self.slug, number), key))
            assert added == number, f"asked again for version {number}, and got {added}"
            patiently(lambda: prompts.publish(self.slug, number))
        self.acknowledged = number

    def audit(self, client: OpenAI) -> None:
        """Every version that was acknowledged is there with its text, the last one published."""
        prompts = Prompts(client)
        head = patiently(lambda: prompts.get(self.slug))
        assert head["published_version"] == self.acknowledged
        assert [v["version"] for v in head["versions"]] == list(range(1, self.begun + 1))
        for number in range(1, self.acknowledged + 1):
            found = prompts.version(self.slug, number)
            assert found["messages"] == version_of(self.slug, number).messages


@dataclass
class Watched:
    """One batch with its lines, and the pins that were shown."""

    batch_id: str
    run: str
    lines: list[dict[str, Any]]
    #: By slug: the version that was acknowledged as published before the batch was created.
    at_least: dict[str, int]
    at_most: dict[str, int] = field(default_factory=dict)
    shown: Pins = field(default_factory=dict)
    ended: Batch | None = None

    def see(self, batch: Batch, begun: dict[str, int]) -> None:
        """Takes in what the gateway showed."""
        pins = pins_shown(batch)
        if self.shown:
            assert pins == self.shown, f"{self.batch_id}: pins went from {self.shown} to {pins}"
        elif pins:
            self.shown, self.at_most = pins, begun
        if batch.status in ENDED:
            assert self.shown, f"{self.batch_id} ended as {batch.status} without pins"
            self.ended = batch

    def book(self) -> Book:
        """The prompts as this batch must have seen them."""
        book = Book()
        for slug, most in self.at_most.items():
            versions = [version_of(slug, number) for number in range(1, most + 1)]
            book.add(slug, *versions, published=self._published(slug))
        return book

    def _published(self, slug: str) -> int:
        """The version that explains the shown numbers of lines; there is only one."""
        uses = [line["body"] for line in self.lines if line["body"]["prompt_slug"] == slug]
        named = Counter(b["prompt_version"] for b in uses if "prompt_version" in b)
        shown = Counter({number: n for (of, number), n in self.shown.items() if of == slug})
        open_lines = len(uses) - named.total()
        for number in range(self.at_least[slug], self.at_most[slug] + 1):
            if named + Counter({number: open_lines}) == shown:
                return number
        raise AssertionError(
            f"{self.batch_id} shows {dict(shown)} of {slug}; published was {self.at_least[slug]} "
            f"at create, at most {self.at_most[slug]} when shown, and named were {dict(named)}"
        )


class Storm:
    """The publishers, the batches, and the threads that work on them while things are killed."""

    def __init__(self, stack: Stack, recorded: Recorded, lines: int, rng: random.Random) -> None:
        self.batches: list[Watched] = []
        self._stack = stack
        self._recorded = recorded
        self._lines = lines
        self._rng = rng
        self.publishers = [Publisher(stack, f"kill-{uuid4().hex[:6]}-{n}") for n in range(2)]
        self._stop = threading.Event()
        self._failures: list[BaseException] = []

    @property
    def published(self) -> int:
        """How many versions were acknowledged as published."""
        return sum(publisher.acknowledged for publisher in self.publishers)

    def rage(self, kills: Callable[[], None]) -> None:
        """Publishes and creates until `kills` returns, then waits until all batches have ended."""
        for publisher in self.publishers:
            publisher.create()
        work = [publisher.step for publisher in self.publishers] + [self._create]
        threads = [threading.Thread(target=self._keep_doing, args=(each,)) for each in work]
        for thread in threads:
            thread.start()
        try:
            kills()
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
        if self._failures:
            raise self._failures[0]
        self._watch_until_all_ended()

    def audit(self) -> int:
        """Holds everything against everything else; how many requests were sent."""
        sent = 0
        with client_of(self._stack) as client:
            for publisher in self.publishers:
                publisher.audit(client)
            for watched in self.batches:
                ended = watched.ended
                assert ended is not None
                assert ended.status == "completed", (ended.id, ended.status, ended.errors)
                results = _results(client, ended)
                check_conservation(ended, results, watched.lines)
                assert results.error == []
                sent += check_bodies(
                    self._recorded, watched.book(), watched.lines, f"{watched.run}-"
                )
        return sent

    def _keep_doing(self, step: Callable[[], None]) -> None:
        try:
            while not self._stop.is_set():
                step()
        except BaseException as error:  # noqa: BLE001 - told by the thread that waits
            self._failures.append(error)
            self._stop.set()

    def _create(self) -> None:
        """Makes one batch, and looks at all that are open."""
        run = f"kill-{uuid4().hex[:8]}"
        lines = [self._line(f"{run}-{n}", n) for n in range(self._lines)]
        with client_of(self._stack) as client:
            file = patiently(
                lambda: client.files.create(file=("in.jsonl", mixed_jsonl(lines)), purpose="batch")
            )
            at_least = {p.slug: p.acknowledged for p in self.publishers}
            batch = patiently(
                lambda: client.batches.create(
                    input_file_id=file.id,
                    endpoint="/v1/chat/completions",
                    completion_window="24h",
                    extra_headers={"Idempotency-Key": run},
                )
            )
            self.batches.append(Watched(batch.id, run, lines, at_least))
            self._look(client)

    def _line(self, key: str, number: int) -> dict[str, Any]:
        publisher = self.publishers[number % len(self.publishers)]
        version = self._rng.randint(1, publisher.acknowledged)
        named = {"prompt_version": version} if number % 5 == 4 else {}
        return prompt_line(key, publisher.slug, {"text": f"{{{{text}}}} {number}"}, **named)

    def _look(self, client: OpenAI) -> None:
        for watched in self.batches:
            if watched.ended is None:
                batch = _retrieve(client, watched.batch_id)
                watched.see(batch, {p.slug: p.begun for p in self.publishers})

    def _watch_until_all_ended(self, within_s: float = 180) -> None:
        deadline = deadline_in(within_s)
        with client_of(self._stack) as client:
            while any(watched.ended is None for watched in self.batches):
                self._look(client)
                assert time.monotonic() < deadline, "batches must end"
                time.sleep(_POLL_S)
            for watched in self.batches:
                last = _retrieve(client, watched.batch_id)
                assert pins_shown(last) == watched.shown


def _retrieve(client: OpenAI, batch_id: str) -> Batch:
    return patiently(lambda: client.batches.retrieve(batch_id))


def _results(client: OpenAI, ended: Batch) -> Results:
    return patiently(lambda: results_of(client, ended))
