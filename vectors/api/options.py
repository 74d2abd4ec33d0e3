"""What every request on vectors may say beside its body: the namespace, and how consistent it wants to be.

The consistency parameters come from the query or from headers; the query wins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from django.conf import settings
from rest_framework.request import Request

from mlvdb_site.http.errors import RequestError
from mlvdb_site.http.parameters import (
    QueryParameter,
    choice,
    flag,
    seconds,
)
from vectors.names import NAME_PATTERN, checked_namespace
from vectors.query_processor.port import DEFAULT_OPTIONS, RequestOptions
from vectors.tokens import parse_token

DEFAULT_NAMESPACE: Final = "default"

CONSISTENCY_LEVELS: Final = ("one", "quorum", "all")
READ_PREFERENCES: Final = ("primary", "replica", "nearest")
FLAG_SCHEMA: Final[Mapping[str, Any]] = {"type": "string", "enum": ["true", "false", "1", "0"]}
NAME_SCHEMA: Final[Mapping[str, Any]] = {"type": "string", "pattern": f"^{NAME_PATTERN}$"}
MAX_TOKENS = 4096
_TOKEN_PATTERN: Final = f"({NAME_PATTERN}):([!-+\\--~]+)"
_TOKEN = re.compile(_TOKEN_PATTERN)
MAX_IDEMPOTENCY_KEY = 255

NAMESPACE = QueryParameter(
    "namespace", "The namespace.", schema={**NAME_SCHEMA, "default": DEFAULT_NAMESPACE}, example=DEFAULT_NAMESPACE
)
ID_TYPE = QueryParameter(
    "id_type",
    "`string` reads an id of digits in the path or query as a string.",
    schema={"type": "string", "enum": ["string"]},
)
CONSISTENCY = QueryParameter(
    "consistency",
    "How many copies must have a write, or are asked for a read.",
    schema={"type": "string", "enum": list(CONSISTENCY_LEVELS), "default": "one"},
    header="X-MLVDB-Consistency",
)
READ_PREFERENCE = QueryParameter(
    "read_preference",
    "Which copy answers a read; without it, and for `nearest`, the copy on the node that is asked.",
    schema={"type": "string", "enum": list(READ_PREFERENCES)},
    header="X-MLVDB-Read-Preference",
)
MIN_SEQ = QueryParameter(
    "min_seq",
    "The least state to read from: `label:value,label:value`, the `seq` of earlier writes.",
    schema={"type": "string", "pattern": f"^{_TOKEN_PATTERN}(,{_TOKEN_PATTERN})*$"},
    header="X-MLVDB-Min-Seq",
)
TIMEOUT = QueryParameter(
    "timeout",
    "Seconds until the request gives up (default 2 for reads, 5 for writes).",
    schema={"type": "number", "exclusiveMinimum": 0, "maximum": settings.MLVDB_MAX_TIMEOUT_S},
    header="X-MLVDB-Timeout",
)
PARTIAL = QueryParameter(
    "partial",
    "Whether an answer may leave out shards that failed (default true for searches, false for all else).",
    schema=FLAG_SCHEMA,
    header="X-MLVDB-Partial",
)
IDEMPOTENCY_KEY = QueryParameter(
    "Idempotency-Key",
    "The generated ids of a repeated request with the same key are the same.",
    schema={"type": "string", "minLength": 1, "maxLength": MAX_IDEMPOTENCY_KEY, "pattern": "^[!-~]+$"},
    header="Idempotency-Key",
)
CONSISTENCY_PARAMETERS: Final = (CONSISTENCY, READ_PREFERENCE, MIN_SEQ, TIMEOUT, PARTIAL)

_HEADERS: Final = tuple(
    (f"HTTP_{parameter.header.upper().replace('-', '_')}", parameter)
    for parameter in (*CONSISTENCY_PARAMETERS, IDEMPOTENCY_KEY)
    if parameter.header is not None
)


def namespace_of(request: Request) -> str:
    """Return the namespace the request is about; raise RequestError for what cannot be a name."""
    http = request._request
    if not http.META.get("QUERY_STRING"):
        return DEFAULT_NAMESPACE
    name = http.GET.get("namespace")
    return DEFAULT_NAMESPACE if name is None else namespace_name(name, field="namespace")


def namespace_name(text: str, *, field: str) -> str:
    """Return the name of a namespace; raise RequestError when it cannot be one."""
    return checked_namespace(text, field=field)


def options_of(request: Request) -> RequestOptions:
    """Return the consistency parameters of a request; raise RequestError for one that is of the wrong form."""
    http = request._request
    meta = http.META
    given = {parameter.name: meta[key] for key, parameter in _HEADERS if key in meta}
    if meta.get("QUERY_STRING"):
        query = http.GET
        overridden = [parameter.name for parameter in CONSISTENCY_PARAMETERS if parameter.name in query]
        if given and overridden:
            # A header of the wrong form is refused even where the query wins.
            _parse(given)
        given.update((name, query[name]) for name in overridden)
    return _parse(given) if given else DEFAULT_OPTIONS


def flag_of(request: Request, name: str) -> bool:
    """Return a switch of the query that is off unless it is given."""
    http = request._request
    if not http.META.get("QUERY_STRING") or name not in http.GET:
        return False
    return flag(http.GET[name], field=name)


def id_type_is_string(request: Request) -> bool:
    """Return whether `id_type=string` is given."""
    http = request._request
    if not http.META.get("QUERY_STRING") or "id_type" not in http.GET:
        return False
    return choice(http.GET["id_type"], field="id_type", choices=("string",)) == "string"


def _parse(given: Mapping[str, str]) -> RequestOptions:
    timeout = given.get("timeout")
    partial = given.get("partial")
    min_seq = given.get("min_seq")
    preference = given.get("read_preference")
    key = given.get("Idempotency-Key")
    if key is not None and not (0 < len(key) <= MAX_IDEMPOTENCY_KEY and key.isascii() and key.isprintable()):
        raise RequestError(
            f"Idempotency-Key must be 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters", field="Idempotency-Key"
        )
    return RequestOptions(
        consistency=choice(given.get("consistency", "one"), field="consistency", choices=CONSISTENCY_LEVELS),
        read_preference=None
        if preference is None
        else choice(preference, field="read_preference", choices=READ_PREFERENCES),
        min_seq={} if min_seq is None else _tokens(min_seq),
        timeout_s=None if timeout is None else seconds(timeout, field="timeout", maximum=settings.MLVDB_MAX_TIMEOUT_S),
        partial=None if partial is None else flag(partial, field="partial"),
        idempotency_key=key,
    )


def _tokens(text: str) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for part in text.split(","):
        token = _TOKEN.fullmatch(part.strip())
        if token is None or token[1] in tokens or len(tokens) == MAX_TOKENS:
            raise RequestError(
                "min_seq must be label:value,label:value with each label once, as in the seq of a write",
                field="min_seq",
            )
        parse_token(token[2])
        tokens[token[1]] = token[2]
    return tokens
