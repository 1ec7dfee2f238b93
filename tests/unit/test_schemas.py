"""The Avro schemas, their typed form, and the codec between them."""

from __future__ import annotations

import json
import types
import typing
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import schemas
from schemas.codec import DecodeError, decode, decode_as, encode, schema_versions
from schemas.records import RECORDS, BatchCancel, BatchCreate, Record

_FINGERPRINTS = Path(schemas.__file__).parent / "avro" / "fingerprints.json"


def _records_in(schema: Any) -> list[dict[str, Any]]:
    """Every record definition in a schema, nested ones included."""
    if isinstance(schema, list):
        return [found for branch in schema for found in _records_in(branch)]
    if not isinstance(schema, dict):
        return []
    nested = [f["type"] for f in schema.get("fields", [])]
    nested += [schema[k] for k in ("items", "values") if k in schema]
    if isinstance(schema.get("type"), dict | list):
        nested.append(schema["type"])
    inner = [found for part in nested for found in _records_in(part)]
    return [schema, *inner] if schema.get("type") == "record" else inner


def _structs_in(hint: Any) -> dict[str, type[msgspec.Struct]]:
    """Every struct that a type hint mentions, nested ones included, by name."""
    found: dict[str, type[msgspec.Struct]] = {}
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        found[hint.__name__] = hint
        for field in typing.get_type_hints(hint).values():
            found |= _structs_in(field)
    for argument in typing.get_args(hint):
        found |= _structs_in(argument)
    return found


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.__name__)
def test_schema_and_struct_have_the_same_fields_and_every_field_a_doc(record: type[Record]) -> None:
    newest = schema_versions()[record.__name__][-1].raw
    structs = _structs_in(record)
    for schema in _records_in(newest):
        struct = structs[schema["name"]]
        assert schema["doc"].endswith(".")
        assert [f["name"] for f in schema["fields"]] == list(struct.__struct_fields__)
        for field in schema["fields"]:
            assert field["doc"].endswith("."), f"{schema['name']}.{field['name']}"
        with_default = {f["name"] for f in schema["fields"] if "default" in f}
        fields = msgspec.structs.fields(struct)
        typed_default = {f.name for f in fields if f.default is not msgspec.NODEFAULT}
        assert with_default <= typed_default, "what older writers leave out must have a default"


def test_every_schema_has_a_record_and_every_record_a_schema() -> None:
    assert set(schema_versions()) == {r.__name__ for r in RECORDS}


def test_versions_are_numbered_without_gaps() -> None:
    for versions in schema_versions().values():
        assert [v.version for v in versions] == list(range(1, len(versions) + 1))


def test_kept_versions_have_not_changed() -> None:
    """A released version never changes: its fingerprint stands in topics and changelogs.

    If this fails for a version that was never released, run
    `python -m tests.support.freeze_fingerprints`; for any other, add a new version instead.
    """
    frozen = json.loads(_FINGERPRINTS.read_text("utf-8"))
    found = {
        f"{name}/v{v.version}": v.fingerprint.hex()
        for name, versions in schema_versions().items()
        for v in versions
    }
    assert found == frozen


def test_no_two_versions_share_a_fingerprint() -> None:
    all_versions = [v.fingerprint for vs in schema_versions().values() for v in vs]
    assert len(all_versions) == len(set(all_versions))


def _values(hint: Any) -> st.SearchStrategy[Any]:
    """Values that a field of this type may have, within what Avro can hold."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([_values(a) for a in typing.get_args(hint)])
    if origin is tuple:
        return st.lists(_values(typing.get_args(hint)[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3)
    if hint is int:
        return st.integers(0, 2**31 - 1)
    if hint is bytes:
        return st.binary(max_size=40)
    if hint is str:
        return st.text(max_size=20)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return _instances(hint)
    return st.from_type(hint)


def _instances(struct: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(struct)
    return st.builds(struct, **{name: _values(hint) for name, hint in hints.items()})


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.__name__)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_record_comes_back_as_it_was(record: type[Record], data: st.DataObject) -> None:
    value = data.draw(_instances(record))
    assert decode(encode(value)) == value


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_decode_or_raise_decode_error(value: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(value)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_records_decode_or_raise_decode_error(data: st.DataObject) -> None:
    record = data.draw(st.sampled_from(RECORDS))
    value = bytearray(encode(data.draw(_instances(record))))
    for _ in range(data.draw(st.integers(1, 4))):
        value[data.draw(st.integers(10, len(value) - 1)) if len(value) > 10 else 0] ^= data.draw(
            st.integers(1, 255)
        )
    cut = data.draw(st.integers(0, len(value)))
    with suppress(DecodeError):
        decode(bytes(value[: cut or len(value)]))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(RECORDS), st.binary(max_size=120))
def test_hostile_bodies_decode_or_raise_decode_error(record: type[Record], body: bytes) -> None:
    header = b"\xc3\x01" + schema_versions()[record.__name__][-1].fingerprint
    with suppress(DecodeError):
        decode(header + body)


def test_a_record_of_another_type_is_refused() -> None:
    cancel = BatchCancel(command_id="c", batch_id="b", tenant="t", at_ms=1)
    with pytest.raises(DecodeError, match="expected BatchCreate, found BatchCancel"):
        decode_as(encode(cancel), BatchCreate)


def test_a_decode_error_shows_nothing_of_the_record() -> None:
    value = encode(BatchCancel(command_id="c", batch_id="secret", tenant="t", at_ms=1))
    with pytest.raises(DecodeError) as caught:
        decode(value[:-3])
    assert "secret" not in str(caught.value)
