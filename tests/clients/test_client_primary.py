"""Writes that a replica refuses: they go to the primary that it names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.faults import FaultServer, Step, answer, cut, error
from vectors.client import Client, Conflict, NoAnswer, Retries
from vectors.client.errors import ErrorAnswer
from vectors.client.primary import Primary
from vectors.client.session import Session

WRITTEN = answer(201, {"status": "success", "id": 1, "seq": {"shard_0": "0.00000000.2.7"}})
COUNTED = answer(200, {"count": 7})


def not_primary(url: str | None) -> Step:
    """Refuse a write as a replica does."""
    refusal = {"code": "not_primary", "message": "send it there", "field": None, "detail": {"primary_url": url}}
    return answer(409, {"error": refusal, "request_id": "r1"})


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which are not waited for."""
    slept: list[float] = []
    monkeypatch.setattr(Session, "sleep", staticmethod(slept.append))
    return slept


@pytest.fixture
def other() -> Iterator[FaultServer]:
    """A second node."""
    with FaultServer() as server:
        yield server


@pytest.fixture
def client(faults: FaultServer) -> Client:
    return Client(faults.url, timeout=2.0, retries=Retries(attempts=3, first_s=1.0, draw=lambda: 0.5))


def test_a_refused_write_goes_to_the_primary_at_once_and_so_do_the_next_ones(client, faults, other, pauses) -> None:
    faults.then(not_primary(other.url), COUNTED)
    other.then(WRITTEN, WRITTEN)

    assert client.insert([1.0], id=1) == 1
    assert client.insert([1.0], id=1) == 1
    assert client.count() == 7

    assert [request.split(b" ")[0] for request in faults.requests] == [b"POST", b"POST"]
    assert [request.split(b" ")[1] for request in faults.requests] == [
        b"/vectors?namespace=default",
        b"/count?namespace=default",
    ]
    assert len(other.requests) == 2
    assert pauses == []


def test_the_same_body_and_headers_go_to_the_primary(faults, other) -> None:
    faults.then(not_primary(other.url))
    other.then(WRITTEN)

    Client(faults.url, api_key="key").with_options(consistency="quorum").insert([1.0, 2.0], id=1)

    (refused,), (taken,) = faults.requests, other.requests
    assert taken.partition(b"\r\n\r\n")[2] == refused.partition(b"\r\n\r\n")[2]
    assert b"Authorization: Bearer key" in taken
    assert b"X-MLVDB-Consistency: quorum" in taken
    assert f"Host: {other.url.removeprefix('http://')}".encode() in taken


def test_reads_after_a_write_that_went_elsewhere_carry_its_token(client, faults, other) -> None:
    faults.then(not_primary(other.url), COUNTED)
    other.then(WRITTEN)

    client.insert([1.0], id=1)
    client.count()

    assert b"X-MLVDB-Min-Seq: shard_0:0.00000000.2.7" in faults.requests[1]


def test_what_must_not_happen_twice_is_sent_on_too(client, faults, other) -> None:
    faults.then(not_primary(other.url))
    other.then(answer(200, {"deleted": 3, "seq": {}}))

    assert client.delete(filter={"a": 1}) == 3


def test_while_nobody_says_who_the_primary_is_the_write_is_sent_again_after_pauses(
    client, faults, other, pauses
) -> None:
    faults.then(not_primary(None), not_primary(other.url))
    other.then(WRITTEN)

    client.insert([1.0], id=1)

    assert pauses == [0.5]


def test_a_cluster_without_a_primary_is_a_conflict_in_the_end(client, faults) -> None:
    faults.afterwards = not_primary(None)

    with pytest.raises(Conflict) as caught:
        client.insert([1.0], id=1)

    assert caught.value.code == "not_primary"
    assert len(faults.requests) == 3


def test_two_nodes_that_name_each_other_end_it(client, faults, other) -> None:
    faults.afterwards, other.afterwards = not_primary(other.url), not_primary(faults.url)

    with pytest.raises(Conflict):
        client.insert([1.0], id=1)

    assert len(faults.requests) + len(other.requests) < 10


def test_a_primary_that_is_gone_is_forgotten_and_the_first_node_asked_again(client, faults, other) -> None:
    faults.then(not_primary(other.url), WRITTEN)
    other.then(WRITTEN, cut)

    client.insert([1.0], id=1)
    client.insert([1.0], id=1)

    assert len(faults.requests) == 2
    assert len(other.requests) == 2


def test_a_primary_that_cannot_be_reached_is_no_answer(client, faults) -> None:
    with FaultServer() as gone:
        url = gone.url
    faults.afterwards = not_primary(url)

    with pytest.raises(NoAnswer, match=url):
        client.insert([1.0], id=1)


def test_reads_are_never_sent_on(client, faults, other) -> None:
    faults.afterwards = not_primary(other.url)

    with pytest.raises(Conflict):
        client.count()

    assert other.requests == []


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1:8000", "ftp://10.0.0.1", "", "/vectors", 7, None, "https://first:8000"], ids=repr
)
def test_a_url_that_is_none_or_less_safe_is_not_followed(url: object) -> None:
    primary = Primary("https://first:8000")
    refused = ErrorAnswer("no", status=409, code="not_primary", detail={"primary_url": url})

    assert primary.follow(refused, asked="https://first:8000") is None
    assert primary.url == "https://first:8000"


def test_other_conflicts_lead_nowhere(client, faults) -> None:
    faults.then(error(409, "dimension_conflict"))

    with pytest.raises(Conflict):
        client.insert([1.0], id=1)

    assert len(faults.requests) == 1
