"""Checks of request parameters, with the messages, codes and params that OpenAI's API gives."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from api.errors import InvalidRequest

#: JSON's names for types, as they stand in the messages.
_NAMES: dict[type, str] = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal number",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


def wrong_type(param: str, expected: type, value: object) -> InvalidRequest:
    """The error for a value of another JSON type."""
    got = _NAMES.get(type(value), "another type")
    return InvalidRequest(
        f"Invalid type for '{param}': expected {_NAMES[expected]}, but got {got} instead.",
        param=param,
        code="invalid_type",
    )


def missing(param: str) -> InvalidRequest:
    """The error for a required parameter that isn't there."""
    return InvalidRequest(
        f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
    )


def unsupported(param: str, value: str, supported: Collection[str]) -> InvalidRequest:
    """The error for a value outside a closed set."""
    return InvalidRequest(
        f"Invalid value: '{shortened(value)}'. Supported values are: {quoted(supported)}.",
        param=param,
        code="invalid_value",
    )


def known_only(body: Mapping[str, object], known: Collection[str], prefix: str = "") -> None:
    """Refuses parameters that don't exist: a misspelt one must not be ignored in silence."""
    for name in body:
        if name not in known:
            param = prefix + shortened(name)
            raise InvalidRequest(
                f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter"
            )


def string(body: Mapping[str, Any], name: str, *, max_length: int) -> str:
    """A required string."""
    value = body.get(name)
    if value is None:
        raise missing(name)
    if not isinstance(value, str):
        raise wrong_type(name, str, value)
    return at_most(name, value, max_length)


def at_most(param: str, value: str, max_length: int) -> str:
    """The string, if it is not too long."""
    if len(value) > max_length:
        raise InvalidRequest(
            f"Invalid '{param}': string too long. Expected a string with maximum length "
            f"{max_length}, but got a string with length {len(value)} instead.",
            param=param,
            code="string_above_max_length",
        )
    return value


def within(param: str, value: int, low: int, high: int) -> int:
    """The integer, if it lies in [low, high]."""
    if value < low:
        raise InvalidRequest(
            f"Invalid '{param}': integer below minimum value. Expected a value >= {low}, "
            f"but got {value} instead.",
            param=param,
            code="integer_below_min_value",
        )
    if value > high:
        raise InvalidRequest(
            f"Invalid '{param}': integer above maximum value. Expected a value <= {high}, "
            f"but got {value} instead.",
            param=param,
            code="integer_above_max_value",
        )
    return value


def integer_text(param: str, text: str) -> int:
    """The integer in a query parameter or form field."""
    # Longer numbers are out of every range here, and int() of a very long text is slow.
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise wrong_type(param, int, text)
    return int(text)


def quoted(values: Collection[str]) -> str:
    """`'a', 'b' and 'c'`."""
    names = [f"'{v}'" for v in values]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def shortened(value: str) -> str:
    """What of a caller's value may stand in a message."""
    return value if len(value) <= 64 else value[:64] + "…"
