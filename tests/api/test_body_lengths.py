"""How much of a body is read: no more than announced, and no more than the limit."""

from __future__ import annotations

import io
from typing import Any

import orjson
import pytest

from tests.api.conftest import Api, checked_error


class _Stream:
    """A body of endless zeros that counts what is read of it."""

    def __init__(self) -> None:
        self.bytes_read = 0

    def read(self, size: int) -> bytes:
        self.bytes_read += size
        return bytes(size)

    def readline(self, size: int = -1) -> bytes:
        raise AssertionError("a body is not read by lines")


def test_a_body_announced_over_the_limit_is_refused_unread(standing_api: Api, settings: Any) -> None:
    settings.MLVDB_MAX_BODY_BYTES = 1024
    stream = _Stream()

    response = standing_api.post("/vectors", **{"CONTENT_LENGTH": "2000", "wsgi.input": stream})

    error = checked_error(response)
    assert response.status_code == 413
    assert error["field"] == "body"
    assert error["detail"] == {"limit_bytes": 1024}
    assert stream.bytes_read == 0


def test_a_body_in_chunks_is_read_no_further_than_the_limit(standing_api: Api, settings: Any) -> None:
    settings.MLVDB_MAX_BODY_BYTES = 1024 * 1024
    stream = _Stream()

    response = standing_api.post("/vectors", **_chunked(stream))

    assert response.status_code == 413
    assert checked_error(response)["field"] == "body"
    assert stream.bytes_read <= 2 * 1024 * 1024


def test_a_body_in_chunks_is_understood(standing_api: Api) -> None:
    body = io.BytesIO(orjson.dumps({"ids": [1, 2]}))

    response = standing_api.post("/vectors/fetch", **_chunked(body))

    assert [row["id"] for row in response.json()["vectors"]] == [1, 2]


def test_a_body_shorter_than_announced_is_refused(standing_api: Api) -> None:
    body = io.BytesIO(orjson.dumps({"values": [1, 2, 3]}))

    response = standing_api.post("/vectors", **{"CONTENT_LENGTH": "300", "wsgi.input": body})

    assert response.status_code == 400
    assert checked_error(response)["code"] == "incomplete_body"


@pytest.mark.parametrize("short_by", [0, 1])
def test_a_large_body_is_read_in_pieces_to_its_announced_end(standing_api: Api, short_by: int) -> None:
    asked: list[int] = []

    class Stream(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            asked.append(size)
            return super().read(size)

    body = orjson.dumps({"ids": [1, 2]}).ljust(1_000_001) + b"what follows is of another request"
    stream = Stream(body if not short_by else body[:1_000_000])

    response = standing_api.post("/vectors/fetch", **{"CONTENT_LENGTH": "1000001", "wsgi.input": stream})

    assert 0 < max(asked) < 500_000
    if short_by:
        assert checked_error(response)["code"] == "incomplete_body"
    else:
        assert [row["id"] for row in response.json()["vectors"]] == [1, 2]
        assert stream.tell() == 1_000_001


@pytest.mark.parametrize("length", ["many", "-1", "+2", "1_0", "²", "9" * 5000])
def test_a_content_length_that_is_no_number_is_refused(standing_api: Api, length: str) -> None:
    """A negative one would have a server's stream read to its end, whatever the limit."""
    response = standing_api.post("/count", CONTENT_LENGTH=length)

    assert response.status_code == 400
    assert checked_error(response)["field"] == "Content-Length"


def _chunked(stream: Any) -> dict[str, Any]:
    return {
        "CONTENT_LENGTH": "",
        "HTTP_TRANSFER_ENCODING": "chunked",
        "wsgi.input": stream,
        "wsgi.input_terminated": True,
    }
