"""Error codes that callers see. HTTP bodies, validation errors and error files use nothing else."""

from __future__ import annotations

from enum import StrEnum


class ValidationCode(StrEnum):
    """Codes of `errors.data[]` of a failed batch."""

    #: A field is wrong, or the input file can't be used.
    INVALID_REQUEST = "invalid_request"
    #: The line is not JSON.
    INVALID_JSON_LINE = "invalid_json_line"
    #: custom_id, method, url or body is absent.
    MISSING_REQUIRED_PARAMETER = "missing_required_parameter"
    #: The line's url is not the batch's endpoint.
    INVALID_URL = "invalid_url"
    #: The line's method is not POST.
    INVALID_METHOD = "invalid_method"
    #: body.stream is true.
    STREAMING_UNSUPPORTED = "streaming_unsupported"
    #: No configured upstream serves the model.
    MODEL_NOT_FOUND = "model_not_found"
    #: Two lines have the same custom_id.
    DUPLICATE_CUSTOM_ID = "duplicate_custom_id"
    #: The file has no lines.
    EMPTY_FILE = "empty_file"
    #: More lines than a batch may have.
    TOO_MANY_REQUESTS = "too_many_requests_in_file"
    #: The file is larger than a batch's input may be.
    FILE_TOO_LARGE = "file_too_large"
    #: One line is larger than a line may be.
    LINE_TOO_LARGE = "line_too_large"
    #: The file could not be read or the plan not written, after retries.
    INTERNAL_ERROR = "internal_error"


class SubmissionCode(StrEnum):
    """Codes of `rejected` records, beside those of a create over HTTP."""

    #: The key is absent, too long, or not printable UTF-8.
    INVALID_KEY = "invalid_key"
    #: The topic lets producers say when a record came.
    INVALID_TOPIC = "invalid_topic"
    #: The header backhaul-op names nothing that there is.
    INVALID_OP = "invalid_op"
    #: Sealed, but no line came since the last batch with this key.
    EMPTY_BATCH = "empty_batch"
    #: The lines are more bytes than an input file may have.
    TOO_LARGE = "file_too_large"
    #: Not sealed in time.
    NOT_SEALED = "not_sealed"
    #: The tenant has begun too many others and not sealed them.
    TOO_MANY_OPEN = "too_many_open"
    #: The seal says another number of lines than came.
    LINES_MISSING = "lines_missing"
    #: The topic lost lines before they could be read.
    LINES_GONE = "lines_gone"


SUBMISSION_MESSAGES: dict[SubmissionCode, str] = {
    SubmissionCode.INVALID_KEY: (
        "A record needs a key, which names its batch: at most 255 printable characters in UTF-8."
    ),
    SubmissionCode.INVALID_TOPIC: (
        "The topic must have message.timestamp.type=LogAppendTime. Have its operator create it "
        "with `backhaul topics tenant`."
    ),
    SubmissionCode.INVALID_OP: (
        "The header 'backhaul-op' must be 'open', 'seal' or 'abort'; lines have none."
    ),
    SubmissionCode.EMPTY_BATCH: "No line came with this key since it was last sealed or opened.",
    SubmissionCode.TOO_LARGE: "The batch is too large. All its lines are dropped.",
    SubmissionCode.NOT_SEALED: "The batch was not sealed in time. All its lines are dropped.",
    SubmissionCode.TOO_MANY_OPEN: (
        "Too many batches are open: this one is the oldest and was dropped. Seal or abort some."
    ),
    SubmissionCode.LINES_MISSING: "The seal says another number of lines than came with this key.",
    SubmissionCode.LINES_GONE: "Lines were removed from the topic before the batch was made.",
}


class Undelivered(StrEnum):
    """Why results of a batch that came through Kafka are not on its tenant's topic."""

    #: The tenant has no topic for results.
    TOPIC_MISSING = "topic_missing"
    #: The broker takes no records for that topic.
    TOPIC_REFUSED = "topic_refused"
    #: The output or error file was deleted before it was read.
    FILE_GONE = "file_gone"
    #: The output or error file can't be read, though others can.
    FILE_UNREADABLE = "file_unreadable"
    #: Lines are in neither file.
    LINES_MISSING = "lines_missing"


class LineCode(StrEnum):
    """Codes of `error` of a line that was never answered, in the error file."""

    #: The completion window ended first.
    BATCH_EXPIRED = "batch_expired"
    #: The batch was cancelled first.
    BATCH_CANCELLED = "batch_cancelled"
    #: The upstream did not answer in time, at every attempt.
    REQUEST_TIMEOUT = "request_timeout"
    #: The upstream could not be reached or cut the connection, at every attempt.
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    #: The upstream's answer was not JSON, or cut off, at every attempt.
    UPSTREAM_INVALID_RESPONSE = "upstream_invalid_response"
    #: The upstream's answer was larger than the operator allows.
    RESPONSE_TOO_LARGE = "response_too_large"
    #: The line's prompt failed on its variables, such as a test on a value of another type.
    PROMPT_RENDER_FAILED = "prompt_render_failed"
    #: The line's prompt took too much time or memory to render.
    PROMPT_RENDER_TIMEOUT = "prompt_render_timeout"
    #: The rendered prompt is larger than a line may be.
    PROMPT_TOO_LARGE = "prompt_too_large"
    #: The line's bytes could not be read back from the input file.
    INPUT_LOST = "input_lost"
    #: The outcome was counted, but the object that holds it could not be read.
    OUTPUT_LOST = "output_lost"


#: What the never-answered line says to its reader.
LINE_MESSAGES: dict[LineCode, str] = {
    LineCode.BATCH_EXPIRED: (
        "This request could not be executed before the completion window expired."
    ),
    LineCode.BATCH_CANCELLED: "This request was not executed because the batch was cancelled.",
    LineCode.REQUEST_TIMEOUT: "The model did not answer this request in time, at every attempt.",
    LineCode.UPSTREAM_UNREACHABLE: "The model server could not be reached, at every attempt.",
    LineCode.UPSTREAM_INVALID_RESPONSE: (
        "The model server's answer was not valid, at every attempt."
    ),
    LineCode.RESPONSE_TOO_LARGE: "The model server's answer was larger than this server allows.",
    LineCode.PROMPT_RENDER_FAILED: (
        "The prompt could not be rendered with this request's variables."
    ),
    LineCode.PROMPT_RENDER_TIMEOUT: (
        "The prompt took too much time or memory to render with this request's variables."
    ),
    LineCode.PROMPT_TOO_LARGE: "The rendered prompt is larger than this server allows.",
    LineCode.INPUT_LOST: "This request could not be read back from the input file.",
    LineCode.OUTPUT_LOST: "This request was executed, but its result could not be read back.",
}
