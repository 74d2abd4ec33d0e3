"""What clients are told over HTTP of answers that stand on several shards: headers, explain, errors."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from django.test import Client

from cluster.states import PeerHealth
from tests.api.conftest import checked_error
from tests.cluster.shards import Coordinator

ROWS = 40


class Api:
    """A client of a coordinator with one local and one remote shard, which have rows 0 … 39."""

    def __init__(self, shards: Coordinator) -> None:
        self.shards = shards
        self.client = Client(raise_request_exception=False)
        vectors = [{"id": number, "values": [1.0, number, 0.5]} for number in range(ROWS)]
        answer = self.send("PUT", "/vectors/batch", {"vectors": vectors})
        assert answer.status_code == 200, answer.content
        self.seq = orjson.loads(answer.content)["seq"]

    def send(self, method: str, path: str, body: Any = None, **headers: str):
        data = b"" if body is None else orjson.dumps(body)
        return self.client.generic(method, path, data, content_type="application/json", headers=headers)

    def of(self, label: str) -> list[int]:
        return [number for number in range(ROWS) if self.shards.owner_of(number) == label]


@pytest.fixture
def api(coordinator) -> Api:
    return Api(coordinator(local=1, remote=1))


@pytest.fixture
def half(api) -> Api:
    """The same, with the remote shard known to be down."""
    api.shards.shard("remote_0", health=PeerHealth.DEAD)
    return api


def headers_of(answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("X-MLVDB-") and "Node" not in name}


def test_complete_answers_say_so_with_the_number_of_shards(api):
    everywhere = {"X-MLVDB-Complete": "true", "X-MLVDB-Shards": "2/2"}

    assert headers_of(api.send("POST", "/search", {"query": [1, 1, 1]})) == everywhere
    assert headers_of(api.send("POST", "/count", {})) == everywhere
    assert headers_of(api.send("GET", "/namespaces/vectors?limit=10")) == everywhere
    assert headers_of(api.send("GET", "/storage/info")) == everywhere
    assert headers_of(api.send("GET", "/vectors/7")) == {"X-MLVDB-Complete": "true", "X-MLVDB-Shards": "1/1"}


def test_a_search_that_leaves_a_shard_out_says_which(half):
    answer = half.send("POST", "/search", {"query": [1, 1, 1], "top_k": 100})

    assert {hit["id"] for hit in orjson.loads(answer.content)} == set(half.of("shard_0"))
    assert headers_of(answer) == {
        "X-MLVDB-Complete": "false",
        "X-MLVDB-Shards": "1/2",
        "X-MLVDB-Failed": "remote_0",
    }


def test_explain_accounts_for_every_shard(half):
    answer = orjson.loads(half.send("POST", "/search?explain=1", {"query": [1, 1, 1]}).content)

    assert (answer["complete"], len(answer["results"])) == (False, 10)
    failed, own = answer["shards"]
    assert failed == {
        "shard": "remote_0",
        "copy": "",
        "lag": None,
        "took_ms": 0.0,
        "strategy": "",
        "candidates": 0,
        "error": "shard_unavailable",
    }
    assert (own["shard"], own["copy"], own["lag"], own["strategy"]) == ("shard_0", "primary", 0, "exact")
    assert own["candidates"] >= 10
    assert "error" not in own


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/count", {}),
        ("POST", "/vectors/fetch", {"ids": list(range(ROWS))}),
        ("GET", "/namespaces/vectors", None),
        ("GET", "/namespaces?detail=1", None),
        ("GET", "/storage/info", None),
        ("POST", "/vectors/delete", {"filter": {"color__isnull": True}}),
        ("POST", "/search?partial=false", {"query": [1, 1, 1]}),
    ],
)
def test_what_may_leave_nothing_out_is_503_with_retry_after(half, method, path, body):
    answer = half.send(method, path, body)

    error = checked_error(answer)
    assert (answer.status_code, error["code"], error["detail"]["shard"]) == (503, "shard_unavailable", "remote_0")
    assert int(answer["Retry-After"]) >= 1


def test_an_id_whose_shard_cannot_be_asked_is_503_and_others_are_answered(half):
    [there, *_], [here, *_] = half.of("remote_0"), half.of("shard_0")

    for method, path, body in (
        ("GET", f"/vectors/{there}", None),
        ("PATCH", f"/vectors/{there}", {"metadata": {"a": 1}}),
        ("POST", "/vectors", {"id": there, "values": [1, 2, 3]}),
        ("POST", "/vectors/delete", {"ids": [there]}),
        ("POST", "/search", {"id": there}),
    ):
        answer = half.send(method, path, body)
        assert (answer.status_code, checked_error(answer)["code"]) == (503, "shard_unavailable"), path
        assert answer["Retry-After"] == "1"
    assert half.send("GET", f"/vectors/{here}").status_code == 200
    assert half.send("PATCH", f"/vectors/{here}", {"metadata": {"a": 1}}).status_code == 200


def test_a_write_that_not_every_shard_has_committed_says_what_became_of_it(half):
    [there, *_], [here, *_] = half.of("remote_0"), half.of("shard_0")
    vectors = [{"id": number, "values": [9, 9, 9]} for number in (there, here)]

    answer = half.send("PUT", "/vectors/batch", {"vectors": vectors})

    error = checked_error(answer)
    assert (answer.status_code, error["code"]) == (503, "partial_write")
    assert "Retry-After" in answer
    detail = error["detail"]
    assert (detail["ids"], detail["failed_ids"]) == ([there, here], [there])
    assert (detail["shards"]["shard_0"]["status"], set(detail["shards"]["shard_0"])) == ("committed", {"status", "seq"})
    assert (detail["shards"]["remote_0"]["status"], detail["shards"]["remote_0"]["code"]) == (
        "refused",
        "shard_unavailable",
    )


def test_a_part_is_counted_and_deleted_where_the_client_accepts_one(half):
    everything = {"filter": {"color__isnull": True}}
    counted = half.send("POST", "/count?partial=true", {})
    deleted = half.send("POST", "/vectors/delete", everything, **{"X-MLVDB-Partial": "true"})

    for answer in (counted, deleted):
        assert headers_of(answer) == {
            "X-MLVDB-Complete": "false",
            "X-MLVDB-Shards": "1/2",
            "X-MLVDB-Failed": "remote_0",
        }
    assert orjson.loads(counted.content)["count"] == len(half.of("shard_0"))
    assert orjson.loads(deleted.content)["deleted"] == len(half.of("shard_0"))


def test_new_vectors_without_ids_are_taken_while_a_shard_is_down(half):
    for _ in range(5):
        answer = half.send("POST", "/vectors", {"values": [1, 2, 3]})
        assert answer.status_code == 201
        assert half.shards.owner_of(orjson.loads(answer.content)["id"]) == "shard_0"


def test_tokens_of_writes_are_taken_by_reads(api):
    min_seq = ",".join(f"{label}:{token}" for label, token in api.seq.items())

    assert set(api.seq) == {"shard_0", "remote_0"}
    assert api.send("POST", f"/count?min_seq={min_seq}", {}).json() == {"count": ROWS}


def test_a_page_goes_on_where_it_ended_across_shards(api):
    ids, url = [], "/namespaces/vectors?limit=7"
    while url:
        answer = api.send("GET", url)
        ids += [row["id"] for row in answer.json()]
        link = answer.headers.get("Link", "")
        url = link.partition(">")[0].removeprefix("<http://localhost") if link else ""
    assert ids == list(range(ROWS))
