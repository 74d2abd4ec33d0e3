"""The one error shape: every error of every route leaves the node as `{"error": {...}, "request_id": ...}`.

Domain errors carry `code`, `status`, `message`, `field`, `detail` and `retry_after_s`; they are recognised by these
attributes, so that this package needs nothing of the apps whose errors it answers.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

from django.core.exceptions import PermissionDenied, SuspiciousOperation, TooManyFieldsSent
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse, UnreadablePostError
from django.views import defaults
from rest_framework import exceptions
from rest_framework.response import Response

from mlvdb_site.http.renderers import dump_json

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1.0
"""Answered with a 503 whose error names no time of its own."""

_ADMIN_PREFIX = "/admin/"
_CODES = {
    400: "invalid_input",
    401: "not_authenticated",
    403: "permission_denied",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    413: "too_large",
    415: "unsupported_media_type",
    429: "throttled",
    500: "internal_error",
    503: "unavailable",
}


class RequestError(Exception):
    """Raised by the HTTP layer when a request is refused before any domain code sees it."""

    def __init__(
        self,
        message: str,
        *,
        code: str = "invalid_input",
        status: int = 400,
        field: str | None = None,
        detail: Mapping[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.status = status
        self.field = field
        self.detail = dict(detail or {})
        self.retry_after_s = retry_after_s


def error_body(
    code: str,
    message: str,
    *,
    field: str | None = None,
    detail: Mapping[str, Any] | None = None,
    request_id: str | None = None,
) -> dict[str, Any]:
    """Return the body of an error answer."""
    return {
        "error": {"code": code, "message": message, "field": field, "detail": dict(detail or {})},
        "request_id": request_id,
    }


def error_response(
    request: HttpRequest,
    status: int,
    message: str,
    *,
    code: str | None = None,
    field: str | None = None,
    detail: Mapping[str, Any] | None = None,
    retry_after_s: float | None = None,
    headers: Mapping[str, str] | None = None,
) -> HttpResponse:
    """Return an error as plain JSON, for middleware and for errors outside the API's views."""
    body = error_body(
        code or _CODES.get(status, "error"), message, field=field, detail=detail, request_id=_request_id(request)
    )
    answer = HttpResponse(dump_json(body), content_type="application/json", status=status)
    for name, value in {**_retry_headers(status, retry_after_s), **(headers or {})}.items():
        answer[name] = value
    return answer


def exception_handler(exception: Exception, context: Mapping[str, Any]) -> Response | None:
    """Answer what an API view raised; None leaves an unknown exception to Django, which logs it and answers 500.

    The handler of REST_FRAMEWORK["EXCEPTION_HANDLER"].
    """
    refusal = _refusal(exception)
    if refusal is None:
        return None
    request = context.get("request")
    body = error_body(
        refusal.code,
        refusal.message,
        field=refusal.field,
        detail=refusal.detail,
        request_id=_request_id(getattr(request, "_request", request)),
    )
    headers = _retry_headers(refusal.status, refusal.retry_after_s)
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(body, status=refusal.status, headers=headers)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer a request that Django refused before a view ran (handler400)."""
    return _outside_views(request, 400, str(exception) or "the request cannot be understood", defaults.bad_request)


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer a refused request (handler403)."""
    return _outside_views(request, 403, "this request is not permitted", defaults.permission_denied)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer a path that no route matches (handler404)."""
    return _outside_views(request, 404, f"nothing is at {request.path}", defaults.page_not_found)


def server_error(request: HttpRequest) -> HttpResponse:
    """Answer an exception that nobody expected (handler500); Django has logged it with its traceback."""
    if request.path.startswith(_ADMIN_PREFIX):
        return defaults.server_error(request)
    away = _database_away(sys.exc_info()[1])
    if away is not None:
        return error_response(request, away.status, away.message, code=away.code)
    return error_response(request, 500, "the node failed to answer; its log has the reason under this request id")


def _outside_views(request: HttpRequest, status: int, message: str, page: Callable[..., HttpResponse]) -> HttpResponse:
    if request.path.startswith(_ADMIN_PREFIX):
        return page(request, exception=Exception(message))
    return error_response(request, status, message)


def _refusal(exception: Exception) -> Any:
    """Return what the exception means as an object with the attributes of a RequestError, None when unknown."""
    if isinstance(getattr(exception, "code", None), str) and isinstance(getattr(exception, "status", None), int):
        return exception if exception.status != 500 else None  # type: ignore[attr-defined]
    if isinstance(exception, exceptions.APIException):
        return _api_refusal(exception)
    if (away := _database_away(exception)) is not None:
        logger.error("database away error=%r", str(exception))
        return away
    if isinstance(exception, Http404):
        return RequestError("nothing is here", code="not_found", status=404)
    if isinstance(exception, PermissionDenied):
        return RequestError("this request is not permitted", code="permission_denied", status=403)
    if isinstance(exception, UnreadablePostError):
        return RequestError("the body ended before it was complete", code="incomplete_body", field="body")
    if isinstance(exception, TooManyFieldsSent):
        return RequestError("the query has too many parameters", field="query")
    if isinstance(exception, SuspiciousOperation):
        return RequestError(str(exception) or "the request cannot be understood")
    return None


def _database_away(exception: BaseException | None) -> RequestError | None:
    """Return the refusal for a database that cannot be reached or fails, where no domain code has met it."""
    if isinstance(exception, (OperationalError, InterfaceError)):
        reason = (str(exception).splitlines() or ["no reason given"])[0]
        return RequestError(f"the node's database failed: {reason}", code="storage_error", status=503)
    return None


def _api_refusal(exception: exceptions.APIException) -> RequestError:
    status = exception.status_code
    field = {405: "method", 406: "Accept", 415: "Content-Type"}.get(status)
    detail: dict[str, Any] = {}
    message = str(exception.detail)
    if isinstance(exception, exceptions.ValidationError):
        field, message = _first_error(exception.detail)
        detail = {"errors": exception.detail}
    wait = getattr(exception, "wait", None)
    return RequestError(
        message, code=_CODES.get(status, "error"), status=status, field=field, detail=detail, retry_after_s=wait
    )


def _first_error(errors: Any) -> tuple[str | None, str]:
    """Return the field and text of the first error in a serializer's (nested) errors."""
    path: list[str] = []
    while isinstance(errors, (dict, list)) and errors:
        if isinstance(errors, dict):
            name, errors = next(iter(errors.items()))
            path.append(str(name))
        else:
            errors = errors[0]
    return ".".join(path) or None, str(errors)


def _retry_headers(status: int, retry_after_s: float | None) -> dict[str, str]:
    if status != 503 and retry_after_s is None:
        return {}
    return {"Retry-After": str(max(1, math.ceil(RETRY_AFTER_S if retry_after_s is None else retry_after_s)))}


def _request_id(request: Any) -> str | None:
    return getattr(request, "request_id", None)
