"""Replication and sharding on a node where they are not enabled: reads say so, changes are refused."""

from __future__ import annotations

import pytest

from tests.api.conftest import Api, checked_error

READS = {
    "Replication is not enabled": [
        "/replication/info",
        "/replication/replicas/health",
        "/replication/replicas/replica_1/health",
    ],
    "Sharding is not enabled": [
        "/sharding/info",
        "/sharding/shards/health",
        "/sharding/shards/shard_0/health",
        "/sharding/locate?id=7&namespace=default",
        "/cluster/moves",
        "/cluster/moves/1",
        "/cluster/topology",
        "/cluster/health/history",
    ],
}
CHANGES = {
    "replication_not_enabled": [
        ("POST", "/replication/replicas?replica_id=replica_1&replica_url=http://127.0.0.1:8002"),
        ("DELETE", "/replication/replicas/replica_1"),
        ("POST", "/replication/replicas/replica_1/sync?namespace=default"),
        ("POST", "/replication/replicas/replica_1/promote"),
        ("POST", "/replication/promote?force=true"),
    ],
    "sharding_not_enabled": [
        ("POST", "/sharding/shards?shard_id=shard_1&shard_url=http://127.0.0.1:8001&weight=2"),
        ("POST", "/sharding/shards/local?shard_id=shard_1"),
        ("DELETE", "/sharding/shards/shard_1?force=true"),
        ("POST", "/sharding/shards/shard_0/redistribute/shard_1"),
        ("POST", "/sharding/shards/redistribute-all?dry_run=true"),
        ("POST", "/cluster/moves"),
        ("POST", "/cluster/moves/1/pause"),
        ("POST", "/cluster/moves/1/resume"),
        ("POST", "/cluster/moves/1/cancel"),
    ],
}


@pytest.mark.parametrize(("message", "path"), [(message, path) for message, paths in READS.items() for path in paths])
def test_a_read_answers_200_and_says_it(standing_api: Api, message: str, path: str) -> None:
    response = standing_api.get(path)

    assert response.status_code == 200
    assert response.json() == {"message": message}


@pytest.mark.parametrize(
    ("code", "method", "path"), [(code, *change) for code, changes in CHANGES.items() for change in changes]
)
def test_a_change_is_refused(standing_api: Api, code: str, method: str, path: str) -> None:
    response = standing_api.send(method, path)

    assert response.status_code == 400
    assert checked_error(response)["code"] == code


@pytest.mark.parametrize("query", ["", "?id=", "?id=7&id_type=uuid", "?id=7&namespace="])
def test_a_read_that_its_schema_does_not_allow_is_refused_all_the_same(standing_api: Api, query: str) -> None:
    assert standing_api.get(f"/sharding/locate{query}").status_code == 400


def test_parameters_may_come_as_json_or_as_a_form(standing_api: Api) -> None:
    as_json = standing_api.post("/replication/replicas", {"replica_id": "a", "replica_url": "http://127.0.0.1:1"})
    as_form = standing_api.post(
        "/replication/replicas", b"replica_id=a", content_type="application/x-www-form-urlencoded"
    )

    assert checked_error(as_json)["code"] == checked_error(as_form)["code"] == "replication_not_enabled"
