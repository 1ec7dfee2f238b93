"""Every kept version of a schema can read what every other wrote: FULL_TRANSITIVE."""

from __future__ import annotations

import json
from itertools import permutations
from typing import Any

import avro.schema
import pytest
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType

from schemas.codec import schema_versions


def _compatible(reader: dict[str, object], writer: dict[str, object]) -> tuple[bool, object]:
    checker: Any = ReaderWriterCompatibilityChecker
    result = checker().get_compatibility(
        avro.schema.parse(json.dumps(reader)), avro.schema.parse(json.dumps(writer))
    )
    return result.compatibility is SchemaCompatibilityType.compatible, result.messages


@pytest.mark.parametrize("name", sorted(schema_versions()))
def test_all_versions_read_each_other(name: str) -> None:
    for reader, writer in permutations(schema_versions()[name], 2):
        ok, why = _compatible(reader.raw, writer.raw)
        assert ok, f"{name} v{reader.version} can't read v{writer.version}: {why}"


@pytest.mark.parametrize("name", sorted(schema_versions()))
def test_each_version_is_a_valid_schema_that_reads_itself(name: str) -> None:
    for version in schema_versions()[name]:
        assert _compatible(version.raw, version.raw)[0]


def test_the_checker_refuses_what_the_rule_forbids() -> None:
    old: dict[str, object] = {
        "type": "record",
        "name": "R",
        "fields": [{"name": "a", "type": "int"}],
    }
    without_default: dict[str, object] = {
        "type": "record",
        "name": "R",
        "fields": [{"name": "a", "type": "int"}, {"name": "b", "type": "int"}],
    }
    assert not _compatible(without_default, old)[0]


def test_enums_have_a_default_so_that_new_symbols_can_be_read() -> None:
    def enums(schema: object) -> list[dict[str, object]]:
        if isinstance(schema, list):
            return [found for part in schema for found in enums(part)]
        if not isinstance(schema, dict):
            return []
        here = [schema] if schema.get("type") == "enum" else []
        return here + [found for part in schema.values() for found in enums(part)]

    for versions in schema_versions().values():
        for version in versions:
            for enum in enums(version.raw):
                assert enum["default"] in enum["symbols"]  # type: ignore[operator]
