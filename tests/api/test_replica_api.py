"""A replica over HTTP: it is told what it is, shows it, and sends changes to its primary."""

from __future__ import annotations

from cluster.services.taking import placement_take
from cluster.topology import topology_forget
from tests.api.conftest import Api, checked_error
from tests.api.documented import valid
from tests.cluster.test_registry_taking import document as placement_of
from vectors.models import ShardHead


def test_a_replica_shows_what_it_was_told_and_sends_changes_to_its_primary(api: Api) -> None:
    topology_forget()
    placement_take(placement_of())

    info = api.get("/replication/info").json()
    refused = api.post("/replication/replicas?replica_id=a&replica_url=http://127.0.0.1:1")

    valid(info, "/replication/info")
    assert (info["role"], info["replica_id"], info["primary_url"]) == ("replica", "replica_1", "http://127.0.0.1:7001")
    assert set(info["replicas"]) == {"primary", "replica_1", "replica_2"}
    assert refused.status_code == 409
    assert checked_error(refused)["code"] == "not_primary"
    assert checked_error(refused)["detail"] == {"primary_url": "http://127.0.0.1:7001"}
    unknown = checked_error(api.get("/replication/replicas/replica_2/health"))
    assert (unknown["code"], "http://127.0.0.1:7001" in unknown["message"]) == ("replica_not_found", True)
    topology_forget()


def test_a_replica_shows_a_primary_that_is_never_behind_itself(api: Api) -> None:
    topology_forget()
    placement_take(placement_of())
    ShardHead.objects.update(last_seq=7)

    primary = api.get("/replication/info").json()["replicas"]["primary"]
    (shard,) = api.get("/cluster/topology").json()["shards"].values()

    assert primary["applied_seq"] == 7
    assert {copy["name"]: copy["seq"] for copy in shard["copies"]} == {"replica_1": 7, "replica_2": None}
    topology_forget()


def test_a_placement_is_taken_over_http_and_answered_with_the_status(api: Api) -> None:
    topology_forget()
    headers = {"X-MLVDB-Node": placement_of()["owner"]["node"]}

    answer = api.put("/cluster/node/placement", placement_of(), headers=headers)

    assert answer.status_code == 200, answer.content
    [shard] = answer.json()["shards"]
    assert (shard["uid"], shard["role"]) == (placement_of()["shard"]["uid"], "replica")
    assert answer["X-MLVDB-Epoch"] == "3"
    older = api.put("/cluster/node/placement", placement_of(epoch=2), headers=headers)
    assert older.status_code == 409
    assert checked_error(older)["code"] == "stale_epoch"
    stranger = api.put("/cluster/node/placement", placement_of(epoch=9), headers={"X-MLVDB-Node": "f" * 32})
    assert checked_error(stranger)["code"] == "wrong_cluster"
    garbled = api.put("/cluster/node/placement", {"format": 1}, headers=headers)
    assert garbled.status_code == 400
    topology_forget()
