"""YAML that holds what JSON holds, so that a prompt comes back as it was written.

What PyYAML reads beyond JSON is left out: dates, `yes` for true, `1:30` for ninety, octal numbers,
names that are no texts, the same name twice, aliases (by which a small file can become a huge one).
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec
import yaml

#: More than a server takes of one prompt.
MAX_BYTES = 4 << 20

#: What turns the direction of a terminal's text; PyYAML itself escapes control characters.
_TURNING = re.compile("[\u2028-\u202e\u2066-\u2069]")
#: YAML 1.2's core schema: what a plain word is, by its first character.
_WORDS = (
    ("tag:yaml.org,2002:null", re.compile(r"(?:~|null|)\Z"), ["~", "n", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"(?:true|false)\Z"), list("tf")),
    ("tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]+\Z", re.ASCII), list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z", re.ASCII),
        list("-+.0123456789"),
    ),
)


class NotPlain(ValueError):  # noqa: N818 - it is what is wrong
    """The text is not such YAML; the message says why, with the line where it is known."""


def read(text: bytes) -> Any:
    """The value. JSON is read as JSON. Raises NotPlain."""
    if text.lstrip()[:1] in (b"{", b"["):
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # It may be YAML's way to write an object; if it isn't, that reader says what is wrong.
            pass
    try:
        # Not CSafeLoader: the rules below are the Python one's.
        return yaml.load(text.decode("utf-8-sig"), _Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise NotPlain(f"{where}{error.problem or error.context}") from error
    except UnicodeDecodeError as error:
        raise NotPlain("it is not UTF-8") from error
    except RecursionError as error:
        raise NotPlain("it is nested too deeply") from error
    except yaml.YAMLError as error:
        raise NotPlain("it has characters that YAML does not allow") from error


def write(value: Any) -> str:
    """YAML of a JSON value, which read() takes back; texts of several lines as blocks."""
    text = _dumped(value, _BlockDumper)
    try:
        good = read(text.encode()) == value
    except (NotPlain, UnicodeEncodeError):
        good = False
    # PyYAML does not bring every odd character through its blocks and single quotes.
    return text if good else _dumped(value, _QuotingDumper)


def _dumped(value: Any, dumper: type[yaml.SafeDumper]) -> str:
    text: str = yaml.dump(value, Dumper=dumper, sort_keys=False, allow_unicode=True, width=100)
    # Texts with such characters are in double quotes, where an escape means the character.
    return _TURNING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class _Loader(yaml.SafeLoader):
    """Reads the plain words of YAML 1.2, names once, and no aliases."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 - as its base has it

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.get_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _wrong(f"the name {key!r} is not a text; put it in quotes", key_node)
            if key in found:
                raise _wrong(f"the name {key!r} is there twice", key_node)
            found[key] = self.construct_object(value_node, deep=deep)
        return found

    def whole_number(self, node: Any) -> int:
        """An int; 010 is ten."""
        try:
            return int(node.value)
        except ValueError as error:
            raise _wrong("the number is too long", node) from error

    def number(self, node: Any) -> float:
        """A finite float."""
        value = float(node.value)
        if not math.isfinite(value):
            raise _wrong("the number is too large", node)
        return value

    def foreign(self, node: Any) -> Any:
        """Tags that JSON has no word for."""
        raise _wrong(f"{node.tag.rpartition(':')[2]} is not read", node)


def _wrong(what: str, node: Any) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, what, node.start_mark)


for _kind in ("binary", "timestamp", "omap", "pairs", "set"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.foreign)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.number)


class _Dumper(yaml.SafeDumper):
    """Puts in quotes what either YAML 1.1 or 1.2 would not read as a text; no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _QuotingDumper(_Dumper):
    """Puts every text in double quotes, where every character can be written."""

    def text(self, data: str) -> Any:
        """A text."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"')


class _BlockDumper(_Dumper):
    """Texts of several lines are blocks."""

    def text(self, data: str) -> Any:
        """A text."""
        style = '"' if _TURNING.search(data) else "|" if "\n" in data else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


for _tag, _pattern, _first in _WORDS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _BlockDumper.add_implicit_resolver(_tag, _pattern, _first)
_BlockDumper.add_representer(str, _BlockDumper.text)
_QuotingDumper.add_representer(str, _QuotingDumper.text)
