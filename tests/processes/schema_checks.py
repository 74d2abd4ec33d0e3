"""What `test_schemathesis` adds to schemathesis, which loads this module (SCHEMATHESIS_HOOKS): msgpack and checks.

Two of schemathesis' checks compare the answer with what the document says of the *request*, and a JSON schema cannot
say everything. They are wrapped here, and what is excused stands in tables with its reason.
"""

from __future__ import annotations

import re
from typing import Any

import msgpack
import orjson
import schemathesis
from schemathesis.core.failures import Failure
from schemathesis.specs.openapi import checks as openapi_checks

JSON = "application/json"
MSGPACK = "application/msgpack"
MIN_SEQ = "X-MLVDB-Min-Seq"

#: Answered without a body by the web server, before the node sees the request: its limits of URL and headers.
SERVER_LIMITS = (414, 431)

#: (operation, code, field) of refusals of requests that are valid by the document, as regular expressions.
KNOWN_ONLY_TO_THE_NODE = (
    # Replication and sharding are not enabled on this node: every change is 400.
    (r".* /(replication|sharding|cluster)/.*", r"(replication|sharding)_not_enabled", r""),
    # The dimension is of the namespace, which the schema of a body knows nothing of.
    (r".*", r"dimension_mismatch", r".*"),
    # A namespace is made with a dimension, and changed without one; a picture has as many pixels as that.
    (r"PUT /namespaces/\{name\}", r".*", r"dimension|picture"),
    # The level may be in the query or in the body, which no parameter of OpenAPI can express.
    (r"POST /log/level", r"missing_field", r"level"),
    # Tokens are opaque: only the node knows whether it has handed one out.
    (r".*", r"invalid_input", r"min_seq"),
    # JSON schema counts the characters of a string; an id is limited in bytes of UTF-8.
    (r".*", r"invalid_input", r"(.*\.)?id|ids\[\d+\]|after"),
    # Limits that hold for a whole filter or a whole row: conditions, depth, bytes.
    (r".*", r"invalid_filter|too_large", r".*"),
)


#: Also rows of these names, whose GET and PATCH stand in the document at `/vectors/{row_id}`.
ALSO_ROWS = ("/vectors/batch", "/vectors/fetch", "/vectors/delete")


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Give the header that schemathesis cannot make of its pattern a value of its form, unless it is the fault."""
    if (case.headers or {}).get(MIN_SEQ) == "0" and getattr(_phase_data(case), "parameter", None) != MIN_SEQ:
        case.headers[MIN_SEQ] = "elsewhere:0.0.0.0"


@schemathesis.serializer(MSGPACK)
def _msgpack_body(ctx: Any, value: Any) -> bytes:
    # msgpack has no integers beyond 64 bits; that much is left of them.
    return bytes(msgpack.packb(value, default=lambda beyond: float(beyond) if type(beyond) is int else str(beyond)))


@schemathesis.deserializer(MSGPACK)
def _msgpack_answer(ctx: Any, response: Any) -> Any:
    return msgpack.unpackb(response.content)


@schemathesis.check
def one_error_shape(ctx: Any, response: Any, case: Any) -> None:
    """Every error has the one shape, and every answer the id of its request."""
    if response.status_code in SERVER_LIMITS and not response.content:
        return
    request_ids = response.headers.get("x-request-id")
    if not request_ids:
        raise Failure(operation=case.operation.label, title="No X-Request-ID", message=f"{response.headers}")
    if response.status_code < 400 or response.request.method == "HEAD":
        return
    content_type = response.headers["content-type"][0]
    try:
        body = {JSON: orjson.loads, MSGPACK: msgpack.unpackb}[content_type](response.content)
        assert set(body) == {"error", "request_id"}
        assert body["request_id"] == request_ids[0]
        error = body["error"]
        assert set(error) == {"code", "message", "field", "detail"}
        assert re.fullmatch("[a-z0-9_]+", error["code"])
        assert isinstance(error["message"], str)
        assert error["message"]
        assert error["field"] is None or isinstance(error["field"], str)
        assert isinstance(error["detail"], dict)
    except (AssertionError, LookupError, TypeError, ValueError) as trouble:
        raise Failure(
            operation=case.operation.label,
            title="Not the one error shape",
            message=f"{trouble!r}: {response.status_code} {content_type} {response.content[:500]!r}",
        ) from None


@schemathesis.check
def valid_requests_are_accepted(ctx: Any, response: Any, case: Any) -> None:
    """A request of the document's form is not refused, but for what only the node knows."""
    try:
        openapi_checks.positive_data_acceptance(ctx, response, case)
    except Failure:
        error = orjson.loads(response.content)["error"] if response.content else {"code": "", "field": ""}
        for operation, code, field in KNOWN_ONLY_TO_THE_NODE:
            if (
                re.fullmatch(operation, case.operation.label)
                and re.fullmatch(code, error["code"])
                and re.fullmatch(field, error["field"] or "")
            ):
                return
        if _has_whole_float(case.body) and re.fullmatch(r"(.*\.)?(top_k|offset|dimension)", error["field"] or ""):
            # JSON schema counts 1.0 among the integers; the node does not.
            return
        raise


@schemathesis.check
def invalid_requests_are_refused(ctx: Any, response: Any, case: Any) -> None:
    """A request that is not of the document's form is refused."""
    if response.status_code in SERVER_LIMITS or _negates_only_unknown_headers(case):
        return
    openapi_checks.negative_data_rejection(ctx, response, case)


@schemathesis.check
def answers_are_documented(ctx: Any, response: Any, case: Any) -> None:
    """The status code is in the document."""
    if response.status_code in SERVER_LIMITS and not response.content:
        return
    openapi_checks.status_code_conformance(ctx, response, case)


@schemathesis.check
def allow_names_the_methods(ctx: Any, response: Any, case: Any) -> None:
    """`Allow` names the methods of the document."""
    if case.operation.path not in ALSO_ROWS:
        openapi_checks.allow_header_conformance(ctx, response, case)


def _negates_only_unknown_headers(case: Any) -> bool:
    """Whether all that is wrong with a request is a header that nobody has heard of (RFC 9110 §5.1: ignore it)."""
    data = _phase_data(case)
    location = getattr(data, "parameter_location", None)
    return (
        getattr(location, "value", location) == "header"
        and "unexpected properties" in (getattr(data, "description", "") or "").lower()
    )


def _has_whole_float(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_whole_float, value.values()))
    if isinstance(value, list):
        return any(map(_has_whole_float, value))
    return isinstance(value, float) and value.is_integer()


def _phase_data(case: Any) -> Any:
    return None if case.meta is None else case.meta.phase.data
