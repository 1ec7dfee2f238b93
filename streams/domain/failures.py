"""Why an attempt at a line failed: a closed set, with what follows from each member."""

from __future__ import annotations

from enum import StrEnum

from schemas.errors import LineCode


class FailureReason(StrEnum):
    """The reason in an Outcome. Values are also metric labels, so they never carry detail."""

    #: The upstream answered 4xx other than 408, 409 and 429: its answer is final.
    UPSTREAM_REJECTED = "upstream_rejected"
    #: The upstream answered 429.
    RATE_LIMITED = "rate_limited"
    #: The upstream answered 5xx, 408 or 409.
    UPSTREAM_ERROR = "upstream_error"
    #: No answer in time.
    TIMEOUT = "timeout"
    #: Connection refused, reset or cut before a whole answer.
    UNREACHABLE = "unreachable"
    #: The answer is not JSON, or not an object.
    INVALID_RESPONSE = "invalid_response"
    #: The answer is larger than the upstream table allows.
    RESPONSE_TOO_LARGE = "response_too_large"
    #: The line itself could not be read back, so nothing was sent.
    INPUT_LOST = "input_lost"

    #: The line's prompt failed on its variables.
    PROMPT_FAILED = "prompt_failed"
    #: The line's prompt took too much time or memory to render.
    PROMPT_TIMEOUT = "prompt_timeout"
    #: The rendered prompt is larger than a line may be.
    PROMPT_TOO_LARGE = "prompt_too_large"

    @property
    def is_retriable(self) -> bool:
        """Whether another attempt may end differently."""
        return self not in _FINAL

    @property
    def metric_label(self) -> str:
        """The label under which metrics count it."""
        return self.value

    @property
    def line_code(self) -> LineCode | None:
        """The error file's code; None where the upstream's own last answer stands there."""
        return _LINE_CODES.get(self)


_FINAL = frozenset(
    {
        FailureReason.UPSTREAM_REJECTED,
        FailureReason.RESPONSE_TOO_LARGE,
        FailureReason.INPUT_LOST,
        FailureReason.PROMPT_FAILED,
        FailureReason.PROMPT_TIMEOUT,
        FailureReason.PROMPT_TOO_LARGE,
    }
)
_LINE_CODES: dict[FailureReason, LineCode] = {
    FailureReason.TIMEOUT: LineCode.REQUEST_TIMEOUT,
    FailureReason.UNREACHABLE: LineCode.UPSTREAM_UNREACHABLE,
    FailureReason.INVALID_RESPONSE: LineCode.UPSTREAM_INVALID_RESPONSE,
    FailureReason.RESPONSE_TOO_LARGE: LineCode.RESPONSE_TOO_LARGE,
    FailureReason.INPUT_LOST: LineCode.INPUT_LOST,
    FailureReason.PROMPT_FAILED: LineCode.PROMPT_RENDER_FAILED,
    FailureReason.PROMPT_TIMEOUT: LineCode.PROMPT_RENDER_TIMEOUT,
    FailureReason.PROMPT_TOO_LARGE: LineCode.PROMPT_TOO_LARGE,
}
