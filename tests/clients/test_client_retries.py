"""When a client sends a request again, against a server that fails in every way there is."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from tests.clients.faults import FaultServer, answer, cut, error, half_an_answer, silence
from vectors.client import (
    BadAnswer,
    BadRequest,
    Client,
    Conflict,
    ErrorAnswer,
    NoAnswer,
    NotAuthenticated,
    NotFound,
    OutOfSpace,
    PermissionDenied,
    Retries,
    TooLarge,
    Unavailable,
)
from vectors.client.session import Session, SessionTokens

GOOD = answer(200, {"count": 7})


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which are not waited for."""
    slept: list[float] = []
    monkeypatch.setattr(Session, "sleep", staticmethod(slept.append))
    return slept


@pytest.fixture
def client(faults: FaultServer) -> Client:
    return Client(faults.url, timeout=0.5, retries=Retries(attempts=4, first_s=1.0, draw=lambda: 0.5))


@pytest.mark.parametrize(
    "fault",
    [
        cut,
        half_an_answer,
        silence,
        error(503, "busy"),
        error(503, "storage_busy"),
        answer(502, b"", content_type="text/html"),
    ],
    ids=["cut", "half", "silence", "busy", "storage_busy", "gateway"],
)
def test_a_read_is_sent_again_after_a_passing_failure(client, faults, pauses, fault) -> None:
    faults.then(fault, fault, GOOD)

    assert client.count() == 7
    assert len(faults.requests) == 3
    assert len(pauses) == 2


def test_pauses_grow_and_are_jittered(client, faults, pauses) -> None:
    faults.then(cut, cut, cut, GOOD)

    client.count()

    assert pauses == [0.5, 1.0, 2.0]


def test_the_pause_honours_retry_after(client, faults, pauses) -> None:
    faults.then(error(503, "checkpoint_behind", Retry_After="3"), GOOD)

    client.count()

    assert pauses == [3.5]


def test_a_retry_after_beyond_patience_ends_the_retries(client, faults, pauses) -> None:
    faults.then(error(503, "not_ready", Retry_After="3600"))

    with pytest.raises(Unavailable) as caught:
        client.count()

    assert caught.value.retry_after_s == 3600
    assert pauses == []


def test_retries_are_bounded(client, faults, pauses) -> None:
    faults.afterwards = error(503, "busy")

    with pytest.raises(Unavailable):
        client.count()

    assert len(faults.requests) == 4


def test_the_last_try_has_a_connection_of_its_own(client, faults, pauses) -> None:
    faults.then(error(503, "busy"), error(503, "busy"), error(503, "busy"), GOOD)

    client.count()

    assert faults.connections == 2


def test_connections_are_reused(client, faults) -> None:
    faults.afterwards = GOOD

    for _ in range(5):
        client.count()

    assert faults.connections == 1


def test_a_refused_connection_is_tried_again_and_then_raised(pauses) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    client = Client(url, retries=Retries(attempts=3))

    with pytest.raises(NoAnswer, match="connection refused"):
        client.namespace_drop("any")

    assert len(pauses) == 2


@pytest.mark.parametrize("fault", [cut, silence, error(503, "not_ready")], ids=["cut", "silence", "not_ready"])
def test_what_must_not_happen_twice_is_not_sent_again_when_it_may_have_happened(client, faults, pauses, fault) -> None:
    faults.then(fault, fault)

    with pytest.raises((NoAnswer, Unavailable)):
        client.delete(filter={"a": 1})
    with pytest.raises((NoAnswer, Unavailable)):
        client.namespace_drop("n")

    assert len(faults.requests) == 2


def test_what_must_not_happen_twice_is_sent_again_when_it_was_refused_before_it_began(client, faults, pauses) -> None:
    faults.then(error(503, "busy"), answer(200, {"status": "success", "deleted": 3, "seq": {}}))

    assert client.delete(filter={"a": 1}) == 3


def test_an_insert_that_is_sent_again_has_the_same_id(client, faults, pauses) -> None:
    faults.then(cut, answer(201, {"status": "success", "id": "x", "seq": {}}))

    client.insert([1.0, 2.0])

    first, second = (request.partition(b"\r\n\r\n")[2] for request in faults.requests)
    assert first == second


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, BadRequest),
        (401, NotAuthenticated),
        (403, PermissionDenied),
        (404, NotFound),
        (409, Conflict),
        (413, TooLarge),
        (418, ErrorAnswer),
        (500, ErrorAnswer),
        (507, OutOfSpace),
    ],
)
def test_an_error_answer_is_raised_once_with_all_it_says(client, faults, pauses, status, expected) -> None:
    faults.then(error(status, "some_code"))

    with pytest.raises(expected) as caught:
        client.count()

    raised = caught.value
    assert type(raised) is expected
    assert (raised.status, raised.code, raised.field) == (status, "some_code", "f")
    assert (raised.detail, raised.request_id) == ({"a": 1}, "r1")
    assert "it is some_code" in str(raised)
    assert len(faults.requests) == 1


def test_a_damaged_shard_is_not_asked_again(client, faults, pauses) -> None:
    faults.then(error(503, "shard_damaged"))

    with pytest.raises(Unavailable):
        client.count()

    assert len(faults.requests) == 1


@pytest.mark.parametrize(
    "foreign",
    [
        answer(200, b"<html>", content_type="application/json"),
        answer(200, b"\xc1", content_type="application/msgpack"),
        answer(404, b"<html>", content_type="text/html"),
        answer(302, b"", Location="http://127.0.0.1:1/"),
    ],
    ids=["no-json", "no-msgpack", "page", "redirect"],
)
def test_an_answer_that_is_no_node_s_is_named_as_such(client, faults, foreign) -> None:
    faults.then(foreign)

    with pytest.raises(BadAnswer):
        client.health()


def test_the_key_goes_along_and_is_in_no_message(faults) -> None:
    faults.then(error(401, "invalid_key"))

    with pytest.raises(NotAuthenticated) as caught:
        Client(faults.url, "mlvdb_secret").count()

    assert b"authorization: bearer mlvdb_secret" in faults.requests[0].lower()
    assert "mlvdb_secret" not in str(caught.value)


def test_reads_carry_the_newest_position_of_each_shard_written(client, faults) -> None:
    def written(seq: dict[str, str]):
        return answer(200, {"status": "success", "id": 1, "seq": seq})

    faults.then(
        written({"shard_0": "0.aaaaaaaa.1.7"}),
        written({"shard_0": "0.aaaaaaaa.1.5", "shard_1": "0.bbbbbbbb.1.2"}),
        GOOD,
        GOOD,
    )

    client.patch(1, {})
    client.patch(1, {})
    client.count()
    client.forget_writes()
    client.count()

    assert b"x-mlvdb-min-seq: shard_0:0.aaaaaaaa.1.7,shard_1:0.bbbbbbbb.1.2" in faults.requests[2].lower()
    assert b"min-seq" not in faults.requests[3].lower()


def test_a_token_of_another_log_or_form_replaces_the_one_before() -> None:
    tokens = SessionTokens()
    tokens.remember({"s": "0.aaaaaaaa.1.9"})
    tokens.remember({"s": "0.bbbbbbbb.1.1"})
    assert tokens.header() == "s:0.bbbbbbbb.1.1"

    tokens.remember({"s": "v2-opaque"})

    assert tokens.header() == "s:v2-opaque"


def test_options_go_along_as_headers_and_leave_the_client_as_it_was(client, faults) -> None:
    faults.then(GOOD, GOOD)

    client.with_options(consistency="quorum", read_preference="nearest", timeout_s=1.5, partial=False).count()
    client.count()

    sent = faults.requests[0].lower()
    for line in (b"consistency: quorum", b"read-preference: nearest", b"timeout: 1.5", b"partial: false"):
        assert b"x-mlvdb-" + line in sent
    assert b"x-mlvdb-" not in faults.requests[1].lower()


def test_an_incomplete_answer_says_so(client, faults) -> None:
    faults.then(answer(200, [], X_MLVDB_Complete="false", X_MLVDB_Failed="shard_1", X_MLVDB_Stale="shard_0:7"))

    hits = client.search([1.0])

    assert (hits.complete, hits.failed_shards, hits.stale_shards) == (False, ("shard_1",), ("shard_0",))


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", ""])
def test_a_base_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        Client(url)


def test_the_client_imports_no_django() -> None:
    code = "import sys, vectors.client; print([n for n in sys.modules if n.split('.')[0] in ('django', 'celery')])"

    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)

    assert printed.stdout.strip() == "[]"
