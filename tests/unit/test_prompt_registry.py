"""Stored prompts folded from their topic: who wins a race, what compaction may remove, and pins."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.records import PromptHead, PromptVersion, PromptVersionRef
from streams.domain.prompts.pins import Pin, PinsError, decode_pins, encode_pins
from streams.domain.prompts.registry import (
    Registry,
    Resolved,
    Unresolved,
    head_key,
    version_key,
)

Logged = tuple[str, PromptHead | PromptVersion | None]


def _ref(number: int, version_id: str) -> PromptVersionRef:
    return PromptVersionRef(
        number=number, version_id=version_id, created_at_ms=number, size_bytes=2, request_hash=""
    )


def _head(revision: int, write_id: str = "w", **changes: Any) -> PromptHead:
    head = PromptHead(
        tenant="t",
        slug="s",
        revision=revision,
        write_id=write_id,
        prompt_id="prompt_1",
        request_hash="h",
        created_at_ms=1,
        updated_at_ms=revision,
        published=1,
        latest=1,
        versions=(_ref(1, "v1"),),
    )
    return msgspec.structs.replace(head, **changes)


def _text(version_id: str, tenant: str = "t", slug: str = "s") -> PromptVersion:
    return PromptVersion(
        tenant=tenant,
        slug=slug,
        version_id=version_id,
        messages=version_id.encode(),
        model_config=b"{}",
    )


def _keyed(record: PromptHead | PromptVersion) -> Logged:
    if isinstance(record, PromptHead):
        key = head_key(record.tenant, record.slug, record.revision, record.write_id)
    else:
        key = version_key(record.tenant, record.slug, record.version_id)
    return key, record


def _of(*records: PromptHead | PromptVersion) -> Registry:
    return _folded(*[_keyed(record) for record in records])


def _folded(*log: Logged) -> Registry:
    registry = Registry()
    for key, record in log:
        registry.apply(key, record)
    return registry


def test_a_version_is_found_by_number_and_the_published_one_without() -> None:
    two = _head(2, versions=(_ref(1, "v1"), _ref(2, "v2")), latest=2)
    registry = _of(_text("v1"), _head(1), _text("v2"), two)
    assert registry.resolve("t", "s", None) == Resolved(1, _text("v1"))
    assert registry.resolve("t", "s", 2) == Resolved(2, _text("v2"))
    assert registry.head("t", "s") == two


@pytest.mark.parametrize(
    ("changes", "version", "why"),
    [
        ({}, 2, "no_version"),
        ({"published": None}, None, "not_published"),
        ({"deleted_at_ms": 9, "versions": (), "published": None}, None, "no_prompt"),
        ({"deleted_at_ms": 9, "versions": (), "published": None}, 1, "no_prompt"),
        ({"versions": (_ref(1, "elsewhere"),)}, 1, "no_version"),
    ],
)
def test_what_is_not_there_has_a_reason(
    changes: dict[str, Any], version: int | None, why: Any
) -> None:
    registry = _of(_text("v1"), _head(1), _head(2, **changes))
    assert registry.resolve("t", "s", version) == Unresolved(why)


def test_tenants_do_not_see_each_others_prompts() -> None:
    registry = _of(_text("v1"), _head(1))
    assert registry.resolve("other", "s", None) == Unresolved("no_prompt")
    assert registry.head("other", "s") is None


def test_a_version_of_before_a_deletion_is_gone_after_the_slug_was_created_again() -> None:
    deleted = _head(2, deleted_at_ms=5, versions=(), published=None)
    again = _head(3, prompt_id="prompt_2", latest=2, published=2, versions=(_ref(2, "v2"),))
    registry = _of(_text("v1"), _head(1), deleted, _text("v2"), again)
    assert registry.resolve("t", "s", 1) == Unresolved("no_version")
    assert registry.resolve("t", "s", None) == Resolved(2, _text("v2"))


def test_texts_that_no_head_lists_any_more_are_let_go() -> None:
    deleted = _head(2, deleted_at_ms=5, versions=(), published=None)
    registry = _of(_text("v1"), _head(1), deleted)
    revived = _keyed(_head(3))
    registry.apply(*revived)
    assert registry.resolve("t", "s", 1) == Unresolved("no_version")


@dataclass
class _Writer:
    """A gateway that adds versions: it reads so far, then writes by what it saw."""

    name: str
    seen: int = 0
    registry: Registry = field(default_factory=Registry)
    pending: PromptHead | None = None
    won: list[int] = field(default_factory=list)
    writes: int = 0

    def read(self, log: list[Logged], upto: int) -> None:
        for key, record in log[self.seen : upto]:
            self.registry.apply(key, record)
        self.seen = max(self.seen, upto)
        head = self.registry.head("t", "s")
        if self.pending and head and head.revision >= self.pending.revision:
            if any(r.version_id == self.pending.versions[-1].version_id for r in head.versions):
                self.won.append(self.pending.latest)
            self.pending = None

    def write(self, log: list[Logged]) -> None:
        if self.pending is not None:
            return
        head = self.registry.head("t", "s")
        self.writes += 1
        version_id = f"{self.name}{self.writes}"
        number = head.latest + 1 if head else 1
        before = head.versions if head else ()
        self.pending = _head(
            head.revision + 1 if head else 1,
            version_id,
            latest=number,
            versions=(*before, _ref(number, version_id)),
        )
        log += [_keyed(_text(version_id)), _keyed(self.pending)]


_STEPS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(("read", "write")), st.integers(0, 100)),
    max_size=60,
)


@given(_STEPS, st.data())
def test_racing_writers_number_versions_without_gap_and_lose_none_that_was_acknowledged(
    steps: list[tuple[int, str, int]], data: st.DataObject
) -> None:
    log: list[Logged] = []
    writers = [_Writer(name) for name in "abc"]
    for number, action, share in steps:
        writer = writers[number]
        if action == "write":
            writer.write(log)
        else:
            writer.read(log, writer.seen + (len(log) - writer.seen) * share // 100)
    for writer in writers:
        writer.read(log, len(log))
    head = _folded(*log).head("t", "s")
    numbers = [ref.number for ref in head.versions] if head else []
    assert numbers == list(range(1, len(numbers) + 1))
    assert sorted(n for writer in writers for n in writer.won) == numbers
    # Compaction may take any head that is not the current one, with or without its tombstone.
    current = None if head is None else head_key("t", "s", head.revision, head.write_id)
    superseded = [
        k for k, r in log if isinstance(r, PromptHead) and k != current and r.revision < _rev(head)
    ]
    gone = set(data.draw(st.lists(st.sampled_from(superseded), unique=True)) if superseded else ())
    compacted: list[Logged] = [(k, r) for k, r in log if k not in gone]
    compacted += [(k, None) for k in sorted(gone)[::2]]
    assert _folded(*compacted).head("t", "s") == head


def _rev(head: PromptHead | None) -> int:
    return head.revision if head else 0


def test_pins_come_back_as_they_were_written() -> None:
    pins = (Pin("a", 1, b"[]", b"{}"), Pin("b", 7, b'[{"role":"user"}]', b""))
    assert decode_pins(encode_pins(pins)) == pins
    assert decode_pins(encode_pins(())) == ()


@pytest.mark.parametrize("data", [b"x", b"BHPINS1\x00", b"BHPINS1\x00\x93", b"BHPINS1\x00\x91\x01"])
def test_bytes_that_are_not_pins_are_refused(data: bytes) -> None:
    with pytest.raises(PinsError):
        decode_pins(data)
