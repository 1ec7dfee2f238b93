"""Kinds of token, each billed once.

A report of usage counts cached tokens among the input and reasoning tokens among the output. Here
the four are apart, so that no token is billed twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from schemas.records import Usage

K = TypeVar("K")

#: Where tokens can only be guessed: English prose has about four characters a token.
CHARACTERS_PER_TOKEN = 4


class TokenType(StrEnum):
    """What a token was, which decides its rate."""

    INPUT = "input"
    CACHED_INPUT = "cached_input"
    OUTPUT = "output"
    REASONING = "reasoning"


def split(usage: Usage) -> Mapping[TokenType, int]:
    """The tokens of each type; they add up to input_tokens + output_tokens."""
    return {
        TokenType.INPUT: usage.input_tokens - usage.cached_tokens,
        TokenType.CACHED_INPUT: usage.cached_tokens,
        TokenType.OUTPUT: usage.output_tokens - usage.reasoning_tokens,
        TokenType.REASONING: usage.reasoning_tokens,
    }


def add_parts(a: Mapping[K, Usage], b: Mapping[K, Usage]) -> Mapping[K, Usage]:
    """The sums of both, part by part."""
    return {
        **a,
        **{part: add(a[part], used) if part in a else used for part, used in b.items()},
    }


def subtract(a: Usage, b: Usage) -> Usage:
    """What is left of the first without the second."""
    return Usage(
        input_tokens=a.input_tokens - b.input_tokens,
        cached_tokens=a.cached_tokens - b.cached_tokens,
        output_tokens=a.output_tokens - b.output_tokens,
        reasoning_tokens=a.reasoning_tokens - b.reasoning_tokens,
    )


def add(a: Usage, b: Usage) -> Usage:
    """The sums of both."""
    return Usage(
        input_tokens=a.input_tokens + b.input_tokens,
        cached_tokens=a.cached_tokens + b.cached_tokens,
        output_tokens=a.output_tokens + b.output_tokens,
        reasoning_tokens=a.reasoning_tokens + b.reasoning_tokens,
    )
