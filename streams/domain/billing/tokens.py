"""Kinds of token, each billed once.

A report of usage counts cached tokens among the input and reasoning tokens among the output. Here
the four are apart, so that no token is billed twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from schemas.records import Usage

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


def add_by_model(a: Mapping[str, Usage], b: Mapping[str, Usage]) -> Mapping[str, Usage]:
    """The sums of both, model by model."""
    return {
        **a,
        **{model: add(a[model], used) if model in a else used for model, used in b.items()},
    }


def add(a: Usage, b: Usage) -> Usage:
    """The sums of both."""
    return Usage(
        input_tokens=a.input_tokens + b.input_tokens,
        cached_tokens=a.cached_tokens + b.cached_tokens,
        output_tokens=a.output_tokens + b.output_tokens,
        reasoning_tokens=a.reasoning_tokens + b.reasoning_tokens,
    )
