"""msgpack in and out: vectors as raw little-endian float32, metadata as maps, on every vector endpoint."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest

MEDIA_TYPE = "application/msgpack"


@pytest.fixture
def packed(api):
    """A client that speaks msgpack."""

    def send(method, path, body=None):
        data = b"" if body is None else msgpack.packb(body)
        response = api.send(method, path, data, content_type=MEDIA_TYPE, headers={"Accept": MEDIA_TYPE})
        assert response["Content-Type"] == MEDIA_TYPE
        content = b"".join(response.streaming_content) if response.streaming else response.content
        return response.status_code, msgpack.unpackb(content)

    return send


@pytest.fixture
def rows():
    """Twenty vectors of dimension 16."""
    return np.random.default_rng(3).standard_normal((20, 16)).astype("<f4")


def test_vectors_go_in_and_come_out_as_raw_float32(packed, rows):
    body = {"vectors": [{"id": i, "values": row.tobytes(), "metadata": {"n": i}} for i, row in enumerate(rows)]}

    status, written = packed("PUT", "/vectors/batch", body)
    _, got = packed("GET", "/vectors/7")

    assert status == 200
    assert written["ids"] == list(range(20))
    assert got == {"id": 7, "values": rows[7].tobytes(), "metadata": {"n": 7}}


def test_lists_of_numbers_do_as_well(packed):
    packed(
        "PUT",
        "/vectors/batch",
        {"vectors": [{"id": 1, "values": [1, 2.5]}, {"id": 2, "values": np.array([3, 4], "<f4").tobytes()}]},
    )

    _, body = packed("POST", "/vectors/fetch", {"ids": [1, 2, 3]})

    assert [np.frombuffer(row["values"], "<f4").tolist() for row in body["vectors"]] == [[1, 2.5], [3, 4]]
    assert body["missing"] == [3]


def test_every_vector_endpoint_speaks_it(packed, rows):
    values = rows[0].tobytes()

    assert packed("POST", "/vectors", {"id": "a", "values": values})[0] == 201
    assert packed("PATCH", "/vectors/a", {"metadata": {"x": [1, {"y": None}]}})[1]["status"] == "success"
    assert packed("POST", "/search", {"query": values, "top_k": 1})[1][0]["values"] == values
    assert packed("POST", "/search", {"query": values, "top_k": 1})[1][0]["metadata"] == {"x": [1, {"y": None}]}
    assert packed("POST", "/search/batch", {"searches": [{"query": values}]})[1][0][0]["id"] == "a"
    assert packed("POST", "/count", {"filter": {"x": 1}})[1] == {"count": 1}
    assert packed("GET", "/namespaces")[1] == {"namespaces": ["default"]}
    assert packed("GET", "/namespaces/vectors")[1][0]["values"] == values
    assert packed("GET", "/storage/info")[1]["total_vectors"] == 1
    assert packed("PUT", "/namespaces/b", {"dimension": 2})[1]["namespace"]["name"] == "b"
    assert packed("DELETE", "/vectors", {"ids": ["a"]})[1]["deleted"] == 1
    assert packed("DELETE", "/namespaces/b")[1]["deleted"] == 0


def test_json_and_msgpack_see_the_same_state(api, packed, rows):
    packed("POST", "/vectors", {"id": 1, "values": rows[0].tobytes(), "metadata": {"big": 2**63, "text": "é"}})

    body = api.get("/vectors/1").json()

    assert np.array_equal(np.array(body["values"], dtype=np.float32), rows[0])
    assert body["metadata"] == {"big": 2**63, "text": "é"}


def test_a_long_page_is_streamed(packed):
    rows = [{"id": number, "values": np.array([number, 1], "<f4").tobytes()} for number in range(2100)]
    packed("PUT", "/vectors/batch", {"vectors": rows})

    _, body = packed("GET", "/namespaces/vectors?limit=2050")

    assert len(body) == 2050
    assert body[-1] == {"id": 2049, "values": np.array([2049, 1], "<f4").tobytes(), "metadata": {}}


@pytest.mark.parametrize(
    ("body", "reason"), [(b"\xc1", "a byte begins no value"), (b"\x91" * 5000, "it is nested too deep")]
)
def test_what_is_no_msgpack_is_refused_with_a_reason(api, body, reason):
    response = api.send("POST", "/search", body, content_type=MEDIA_TYPE)

    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "invalid_msgpack")
    assert error["message"] == f"the body is not valid msgpack: {reason}"


def test_errors_are_msgpack_too(packed):
    status, body = packed("GET", "/vectors/1")

    assert status == 404
    assert set(body) == {"error", "request_id"}
    assert body["error"]["code"] == "namespace_not_found"


@pytest.mark.parametrize(
    "name", ["application/x-msgpack", "application/vnd.msgpack", "application/MSGPACK; q=0.9, */*;q=0.1"]
)
def test_its_other_names_are_understood(api, name):
    assert api.get("/namespaces", headers={"Accept": name})["Content-Type"] == MEDIA_TYPE


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("application/json;q=0.5, application/msgpack", MEDIA_TYPE),
        ("text/html;q=0.1, application/json", "application/json"),
        ("image/png, */*;q=0.1", "application/json"),
        ("text/html, */*", "text/html; charset=utf-8"),
    ],
)
def test_the_form_of_the_answer_follows_the_accept_header(api, accept, expected):
    headers = {} if accept is None else {"Accept": accept}

    assert api.get("/namespaces", headers=headers)["Content-Type"] == expected


def test_the_format_parameter_overrides_the_header(api):
    headers = {"Accept": "text/html"}

    assert api.get("/namespaces?format=msgpack", headers=headers)["Content-Type"] == MEDIA_TYPE
    assert api.get("/namespaces?format=json", headers=headers)["Content-Type"] == "application/json"
    assert api.get("/namespaces?format=api")["Content-Type"] == "text/html; charset=utf-8"
