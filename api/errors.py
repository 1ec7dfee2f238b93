"""Errors that callers see, in the one envelope that OpenAI's SDKs understand.

ApiError                    {"error": {"message", "type", "param", "code"}}
├── InvalidRequest          400
├── Unauthenticated         401
├── NotFound                404
├── MethodNotAllowed        405
├── RequestTooSlow          408, the SDKs try again
├── Conflict                409, with x-should-retry: false
├── PreconditionFailed      412, with x-should-retry: false
├── TooLarge                413
├── RangeNotSatisfiable     416
├── RateLimited             429, with Retry-After: the SDKs try again
├── InternalError           500
├── BadGateway              502, the SDKs try again
├── Unavailable             503, with Retry-After: the SDKs try again
├── GatewayTimeout          504
└── StorageFull             507, with x-should-retry: false

A message may name ids, parameters and limits, never the content of a file or a body.
"""

# ruff: noqa: N818 - each name is what is wrong, as in "raises Conflict"

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import msgspec
from aiohttp import web

from streams.kafka.errors import KafkaBaseError
from streams.ports.object_store import ObjectStoreError, ObjectStoreFullError

#: Seconds after which a caller may try again what failed for a moment.
RETRY_AFTER_S = 1
_NO_RETRY = {"x-should-retry": "false"}


class ApiError(Exception):
    """An answer other than success."""

    status = 500
    type = "invalid_request_error"
    default_headers: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.headers = {**self.default_headers, **(headers or {})}

    def body(self) -> bytes:
        """The envelope, as JSON."""
        error = {
            # What callers sent may stand in it, and need not be valid Unicode.
            "message": self.message.encode("utf-8", "replace").decode(),
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return msgspec.json.encode({"error": error})

    def response(self) -> web.Response:
        """The answer."""
        return web.Response(
            status=self.status,
            body=self.body(),
            content_type="application/json",
            headers=self.headers,
        )


class InvalidRequest(ApiError):
    """The request itself is wrong."""

    status = 400


class Unauthenticated(ApiError):
    """No API key, or one that isn't valid."""

    status = 401
    default_headers: ClassVar = {"WWW-Authenticate": "Bearer"}


class NotFound(ApiError):
    """There is no such object, or it is another tenant's."""

    status = 404


class MethodNotAllowed(ApiError):
    """The path exists, with other methods."""

    status = 405


class RequestTooSlow(ApiError):
    """The request's body did not arrive in time."""

    status = 408


class Conflict(ApiError):
    """The object's state forbids it; asking again would not help."""

    status = 409
    default_headers = _NO_RETRY


class PreconditionFailed(ApiError):
    """The object is no longer what the caller's If-Match says; read it again."""

    status = 412
    default_headers = _NO_RETRY


class TooLarge(ApiError):
    """The request or the file is larger than a limit."""

    status = 413


class RangeNotSatisfiable(ApiError):
    """The asked range lies behind the end of the file."""

    status = 416


class RateLimited(ApiError):
    """More requests at once than this server takes."""

    status = 429
    type = "requests"
    default_headers: ClassVar = {"Retry-After": str(RETRY_AFTER_S)}


class InternalError(ApiError):
    """A defect of ours; the log has the trace under the request's id."""

    status = 500
    type = "server_error"


class BadGateway(ApiError):
    """The model server's answer can't be passed on."""

    status = 502
    type = "server_error"


class Unavailable(ApiError):
    """Something this server needs does not answer just now."""

    status = 503
    type = "server_error"
    default_headers: ClassVar = {"Retry-After": str(RETRY_AFTER_S)}


class GatewayTimeout(ApiError):
    """The model did not answer in time."""

    status = 504
    type = "server_error"


class StorageFull(ApiError):
    """The object store has no room; sending the file again would not help."""

    status = 507
    type = "server_error"
    default_headers = _NO_RETRY


def from_exception(error: Exception) -> ApiError | None:
    """The answer for an exception of a lower layer; None if it isn't one we know."""
    match error:
        case ApiError():
            return error
        case ObjectStoreFullError():
            return StorageFull("The server's file storage is full.", code="storage_full")
        case ObjectStoreError():
            return Unavailable("The server's file storage does not answer.", code="unavailable")
        case KafkaBaseError() | TimeoutError():
            return Unavailable("The server is not able to answer just now.", code="unavailable")
    return None


def from_http_exception(error: web.HTTPException, request: web.Request) -> ApiError:
    """The answer in place of aiohttp's own."""
    match error:
        case web.HTTPMethodNotAllowed():
            return MethodNotAllowed(
                f"Not allowed to {request.method} on {request.path}. "
                "(HINT: Perhaps you meant to use a different HTTP method?)",
                code="method_not_supported",
                headers={"Allow": ", ".join(sorted(error.allowed_methods))},
            )
        case web.HTTPNotFound():
            return NotFound(f"Invalid URL ({request.method} {request.path})")
        case web.HTTPRequestEntityTooLarge():
            return TooLarge("The request's body is too large.", code="request_too_large")
    answer = InternalError(error.reason) if error.status >= 500 else InvalidRequest(error.reason)
    answer.status = error.status
    return answer
