"""What a client raises: one class per kind of refusal, each with all that the node said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ClientError(Exception):
    """The root; never raised itself."""

    rows_written: int | None = None
    """Set by `upsert`: rows of the earlier batches, which are written."""


class NoAnswer(ClientError):
    """Raised when the node could not be reached, or did not answer in time; a write may have happened nevertheless."""


class BadAnswer(ClientError):
    """Raised when something answered that is not a node: a proxy's page, a cut or foreign body."""


class ErrorAnswer(ClientError):
    """Raised when the node answered with an error that has no class of its own."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str,
        field: str | None = None,
        detail: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.field = field
        self.detail = dict(detail or {})
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        where = f" (field {self.field})" if self.field else ""
        request = f" [request {self.request_id}]" if self.request_id else ""
        return f"{self.status} {self.code}: {self.message}{where}{request}"


class BadRequest(ErrorAnswer):
    """Raised for 400: the request cannot be understood; `field` names the part of it."""


class NotAuthenticated(ErrorAnswer):
    """Raised for 401: the node has API keys, and none of them came with the request."""


class PermissionDenied(ErrorAnswer):
    """Raised for 403: the key lacks the scope, or the node is in protected mode."""


class NotFound(ErrorAnswer):
    """Raised for 404: the namespace or vector does not exist."""


class Conflict(ErrorAnswer):
    """Raised for 409: what is committed contradicts the request.

    `token_lost` is one: an earlier write of this client was lost; `Client.forget_writes` goes on without it.
    """


class TooLarge(ErrorAnswer):
    """Raised for 413: the body or a row exceeds a limit."""


class Unavailable(ErrorAnswer):
    """Raised for 503 when retrying did not help; a write may have happened nevertheless."""


class OutOfSpace(ErrorAnswer):
    """Raised for 507: the node's disk or memory limit has no room for a write."""


_BY_STATUS: Mapping[int, type[ErrorAnswer]] = {
    400: BadRequest,
    401: NotAuthenticated,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    503: Unavailable,
    507: OutOfSpace,
}


def error_of(status: int, body: Any, *, retry_after_s: float | None = None) -> ErrorAnswer | None:
    """Return the error in the body of an answer, None when the body is not of the one error shape."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("code"), str):
        return None
    detail = error.get("detail")
    return _BY_STATUS.get(status, ErrorAnswer)(
        str(error.get("message", "")),
        status=status,
        code=error["code"],
        field=error.get("field"),
        detail=detail if isinstance(detail, dict) else None,
        request_id=body.get("request_id"),
        retry_after_s=retry_after_s,
    )
