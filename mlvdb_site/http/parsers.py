"""What comes in: the body of a request, bounded before it is read, as JSON, msgpack or a form.

The top level of a JSON or msgpack body is an object. Of a key that is given twice the last one holds. NaN and infinity
are no JSON (RFC 8259); numbers beyond a double are refused too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from hmac import compare_digest
from queue import Empty, SimpleQueue
from typing import IO, Any

import msgpack
import orjson
from django.conf import settings
from django.http import HttpRequest, QueryDict
from rest_framework.parsers import BaseParser

from mlvdb_site.http.errors import RequestError

_PIECE_BYTES = 256 * 1024
_WAIT_TO_READ_S = 0.5
_LENGTH = re.compile("[0-9]{1,20}").fullmatch

# A thread that reads a body waits for its client, who may be slow, or never go on. Two threads of a worker are kept
# from it, so that no number of such clients takes the node from those who only ask. A queue of permits, since each
# request takes one: a semaphore is Python code around a lock, and costs ten times as much.
_permits: SimpleQueue[None] = SimpleQueue()
for _ in range(max(1, settings.MLVDB_THREADS - 2)):
    _permits.put(None)
# Whether somebody waited for a permit in vain, and none has come back since. Those who come now do not wait too: one
# after the other they would take the threads that are kept free, for half a second each.
_stalled = False


def read_body(request: HttpRequest, *, limit: int | None = None) -> bytes:
    """Return the body, at most `limit` bytes of it; raise RequestError (413) without reading a larger one whole.

    The limit is MLVDB_MAX_BODY_BYTES unless another is given. The body of a signed request must be the one that was
    signed (401).

    A body sent in chunks has no announced length: it is read piece by piece where the server marks its end
    (`wsgi.input_terminated`). A compressed body is refused (415): its limit would hold for what nobody sent. While
    all threads that may read are waiting for the rest of other bodies, this one is refused (503 `busy`).
    """
    body = _bounded_body(request, settings.MLVDB_MAX_BODY_BYTES if limit is None else limit)
    signed: str | None = getattr(request, "signed_digest", None)
    if signed is not None and not compare_digest(hashlib.sha256(body).hexdigest(), signed):
        raise RequestError(
            "the body is not the one that was signed",
            code="cluster_signature_mismatch",
            status=401,
            field="X-MLVDB-Content-SHA256",
        )
    return body


class JSONParser(BaseParser):
    """A JSON object in UTF-8; a `charset` in its content type means nothing (RFC 8259 §11)."""

    media_type = "application/json"

    def parse(
        self, stream: IO[bytes], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the object; raise RequestError for anything else."""
        return self.loads(stream.read())

    def loads(self, body: bytes) -> dict[str, Any]:
        """Return the object that a body is; raise RequestError for anything else."""
        try:
            data = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise RequestError(f"the body is not valid JSON: {error}", code="invalid_json", field="body") from None
        return _object(data)


class MsgpackParser(BaseParser):
    """A msgpack map with string keys; vectors may be raw little-endian float32 `bin`."""

    media_type = "application/msgpack"

    def parse(
        self, stream: IO[bytes], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the map; raise RequestError for anything else."""
        return self.loads(stream.read())

    def loads(self, body: bytes) -> dict[str, Any]:
        """Return the map that a body is; raise RequestError for anything else, and for a part beyond every limit."""
        longest = max(
            settings.MLVDB_MAX_BATCH,
            settings.MLVDB_MAX_DIMENSION,
            settings.MLVDB_MAX_SEARCHES,
            settings.MLVDB_MAX_FILTER_VALUES,
            settings.MLVDB_MAX_METADATA_BYTES,
        )
        try:
            data = msgpack.unpackb(
                body,
                max_array_len=longest + 1,
                max_map_len=longest + 1,
                max_str_len=longest + 1,
                max_bin_len=4 * settings.MLVDB_MAX_DIMENSION + 4,
                max_ext_len=0,
            )
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            # Two of its errors have no words of their own.
            silent = {msgpack.FormatError: "a byte begins no value", msgpack.StackError: "it is nested too deep"}
            reason = str(error) or silent.get(type(error), type(error).__name__)
            raise RequestError(
                f"the body is not valid msgpack: {reason}", code="invalid_msgpack", field="body"
            ) from None
        return _object(data)


class FormParser(BaseParser):
    """An urlencoded form, for endpoints that take their parameters from one."""

    media_type = "application/x-www-form-urlencoded"

    def parse(
        self, stream: IO[bytes], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> QueryDict:
        """Return the fields."""
        return QueryDict(stream.read())


def _bounded_body(request: HttpRequest, limit: int) -> bytes:
    coding = request.META.get("HTTP_CONTENT_ENCODING")
    if coding and coding.strip().lower() not in ("", "identity"):
        raise RequestError(
            f"a body is read as it is, not {coding!r}: send it without Content-Encoding",
            code="unsupported_media_type",
            status=415,
            field="Content-Encoding",
            detail={"available": ["identity"]},
        )
    if getattr(request, "_read_started", False):
        body = request.body
        if len(body) > limit:
            raise _too_large(limit)
        return body
    length = request.META.get("CONTENT_LENGTH")
    if length:
        return _read_announced(request, str(length), limit)
    if "HTTP_TRANSFER_ENCODING" in request.META and request.META.get("wsgi.input_terminated"):
        return _read_chunked(request.META["wsgi.input"], limit)
    return b""


def _read_announced(request: HttpRequest, text: str, limit: int) -> bytes:
    if not _LENGTH(text):
        raise RequestError("Content-Length must be a whole number", field="Content-Length")
    length = int(text)
    if length > limit:
        raise _too_large(limit)
    _take_permit()
    try:
        body = request.read(length) if length <= _PIECE_BYTES else _read_pieces(request, length)
    finally:
        _give_permit_back()
    if len(body) < length:
        raise RequestError(f"the body ended after {len(body)} of {length} bytes", code="incomplete_body", field="body")
    return body


def _read_pieces(stream: HttpRequest, length: int) -> bytes:
    """Return up to `length` bytes. Where all are asked for at once the server gathers them in memory that grows with
    them, which costs more than the pieces.
    """
    pieces: list[bytes] = []
    left = length
    while left and (piece := stream.read(min(left, _PIECE_BYTES))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _read_chunked(stream: IO[bytes], limit: int) -> bytes:
    pieces: list[bytes] = []
    total = 0
    _take_permit()
    try:
        while piece := stream.read(_PIECE_BYTES):
            total += len(piece)
            if total > limit:
                raise _too_large(limit)
            pieces.append(piece)
    finally:
        _give_permit_back()
    return b"".join(pieces)


def _take_permit() -> None:
    """Take one of `_permits`, to be given back by the caller; raise RequestError when there is none to be had."""
    global _stalled
    try:
        _permits.get(block=not _stalled, timeout=_WAIT_TO_READ_S)
    except Empty:
        _stalled = True
        raise RequestError(
            "this worker waits for the bodies of too many other requests", code="busy", status=503, retry_after_s=1
        ) from None


def _give_permit_back() -> None:
    global _stalled
    _permits.put(None)
    _stalled = False


def _too_large(limit: int) -> RequestError:
    return RequestError(
        f"a body has at most {limit} bytes",
        code="too_large",
        status=413,
        field="body",
        detail={"limit_bytes": limit},
    )


def _object(data: Any) -> dict[str, Any]:
    if type(data) is not dict:
        raise RequestError("the body must be an object", field="body")
    return data
