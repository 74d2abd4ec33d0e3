"""What routes between nodes share: epochs that must match, errors of a log, parameters; and what a replica hears."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from django.conf import settings
from django.db import transaction
from django.test import Client, RequestFactory

from cluster.api.node import base
from cluster.api.node.base import (
    DetachedCopy,
    NeedPlacement,
    NodeRouteView,
    StaleEpoch,
    WrongCluster,
    placement_or_409,
)
from cluster.models import Placement
from cluster.services.hearing import primary_heard
from cluster.states import CopyState, Membership
from cluster.topology import PlacementView, ShardView, TopologyView
from mlvdb_site.http.request_id import RequestIdMiddleware
from mlvdb_site.markers import topology_changed, topology_marker
from vectors.errors import LogGap

CLUSTER = "c" * 32
OWNED, KEPT = "a" * 32, "b" * 32
NODE = "0123456789abcdef" * 2


def placed(epoch: int) -> PlacementView:
    return PlacementView(
        name="replica_1",
        role="replica",
        epoch=epoch,
        term=1,
        primary_url="http://127.0.0.1:1",
        primary_node=NODE,
        owner_url="http://127.0.0.1:1",
        owner_node=NODE,
        state=CopyState.FOLLOWING,
        membership=Membership.MEMBER,
        primary_seq=0,
        heard=0,
    )


@pytest.fixture
def picture(monkeypatch: pytest.MonkeyPatch) -> TopologyView:
    shards = {
        OWNED: ShardView(OWNED, "shard_0", 1, is_local_primary=True),
        KEPT: ShardView(KEPT, "shard_1", 2, is_local_primary=False, placement=placed(epoch=5)),
    }
    view = TopologyView(cluster=CLUSTER, epoch=7, is_single=False, shards=shards)
    monkeypatch.setattr(base, "topology", lambda: view)
    return view


@pytest.mark.parametrize(("uid", "epoch"), [(OWNED, 7), (KEPT, 5)])
def test_the_same_epoch_is_let_in(picture: TopologyView, uid: str, epoch: int) -> None:
    assert placement_or_409(uid, CLUSTER, epoch) is picture.shards[uid]


def test_a_copy_that_was_removed_is_sent_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender that was at it when the copy was removed knows the epoch of the removal as well."""
    detached = replace(placed(epoch=5), role="detached")
    shards = {KEPT: ShardView(KEPT, "shard_1", 2, is_local_primary=False, placement=detached)}
    monkeypatch.setattr(base, "topology", lambda: TopologyView(cluster=CLUSTER, epoch=5, shards=shards))

    with pytest.raises(DetachedCopy):
        placement_or_409(KEPT, CLUSTER, 5)
    with pytest.raises(NeedPlacement):
        placement_or_409(KEPT, CLUSTER, 6)


@pytest.mark.parametrize(("uid", "epoch", "own"), [(OWNED, 6, 7), (KEPT, 4, 5), (KEPT, 0, 5)])
def test_an_older_epoch_is_told_the_newer(picture: TopologyView, uid: str, epoch: int, own: int) -> None:
    with pytest.raises(StaleEpoch) as caught:
        placement_or_409(uid, CLUSTER, epoch)

    assert (caught.value.status, caught.value.code, caught.value.detail) == (409, "stale_epoch", {"epoch": own})


@pytest.mark.parametrize(("uid", "epoch"), [(OWNED, 8), (KEPT, 6), (KEPT, 7), ("d" * 32, 7)])
def test_a_newer_epoch_or_an_unknown_shard_needs_a_placement(picture: TopologyView, uid: str, epoch: int) -> None:
    with pytest.raises(NeedPlacement) as caught:
        placement_or_409(uid, CLUSTER, epoch)

    assert (caught.value.status, caught.value.code) == (409, "need_placement")


def test_another_cluster_is_refused_whatever_its_epoch(picture: TopologyView) -> None:
    for epoch in (1, 7, 99):
        with pytest.raises(WrongCluster):
            placement_or_409(OWNED, "e" * 32, epoch)


def test_a_node_in_no_cluster_needs_a_placement_for_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    shards = {OWNED: ShardView(OWNED, "shard_0", 1, is_local_primary=True)}
    monkeypatch.setattr(base, "topology", lambda: TopologyView(shards=shards))

    with pytest.raises(NeedPlacement):
        placement_or_409(OWNED, "", 0)


class FailingRoute(NodeRouteView):
    """A route whose log has a gap, and which reads its body and a number."""

    parameters = {"GET": (), "POST": (base.EPOCH,)}

    def get(self, request: Any) -> None:
        raise LogGap("entries 3 to 7 are gone", detail={"seq": 3})

    def post(self, request: Any) -> Any:
        number = base.whole_parameter(request, "epoch")
        return base.binary_answer(b"%d:%d" % (number, len(self.binary_body(request))))


def ask(method: str, path: str, body: bytes = b"") -> Any:
    request = RequestFactory().generic(method, path, body, headers={"X-MLVDB-Node": NODE})
    response = RequestIdMiddleware(FailingRoute.as_view())(request)
    if hasattr(response, "render"):
        response.render()
    return response


def test_an_error_of_a_log_is_a_conflict(picture: TopologyView) -> None:
    response = ask("GET", "/")

    assert response.status_code == 409
    assert response.data["error"]["code"] == "log_gap"
    assert response.data["error"]["detail"] == {"seq": 3}


def test_every_answer_names_node_and_epoch_also_a_refusal(picture: TopologyView) -> None:
    for response in (ask("GET", "/"), ask("POST", "/?epoch=1", b"x"), ask("POST", "/?nonsense=1")):
        assert response["X-MLVDB-Node"] == settings.MLVDB_NODE_ID
        assert response["X-MLVDB-Epoch"] == "7"


def test_bytes_come_in_and_go_out_as_they_are(picture: TopologyView) -> None:
    response = ask("POST", "/?epoch=12", bytes(1000))

    assert (response.status_code, response.content) == (200, b"12:1000")
    assert response["Content-Type"] == "application/octet-stream"


@pytest.mark.parametrize("query", ["", "epoch=", "epoch=-1", "epoch=1.0", "epoch=%D9%A1", "epoch=" + "1" * 19])
def test_a_number_that_is_none_is_refused_by_name(picture: TopologyView, query: str) -> None:
    response = ask("POST", f"/?{query}")

    assert response.status_code == 400
    assert response.data["error"]["field"] == "epoch"


def test_a_body_beyond_what_any_batch_can_become_is_refused(picture: TopologyView, settings: Any) -> None:
    settings.MLVDB_MAX_BODY_BYTES = 1024

    assert ask("POST", "/?epoch=1", bytes(2048)).status_code == 200
    assert ask("POST", "/?epoch=1", bytes(2049)).status_code == 413


def test_a_body_that_is_not_the_signed_one_is_refused(picture: TopologyView) -> None:
    request = RequestFactory().post("/?epoch=1", b"other", content_type="text/plain")
    request.signed_digest = "0" * 64

    response = FailingRoute.as_view()(request)

    assert response.status_code == 401
    assert response.data["error"]["code"] == "cluster_signature_mismatch"


# What a replica hears


@pytest.fixture
def placement(db: None) -> Placement:
    return Placement.objects.create(
        shard=KEPT, cluster=CLUSTER, epoch=5, role="replica", term=2, document={}, primary_seq=10
    )


@pytest.mark.parametrize(("epoch", "term"), [(5, 2), (6, 2), (5, 3)])
def test_the_primary_is_heard(placement: Placement, epoch: int, term: int) -> None:
    assert primary_heard(cluster=CLUSTER, epoch=epoch, heads={KEPT: (term, 17), OWNED: (term, 3)}) == 1

    placement.refresh_from_db()
    assert (placement.primary_seq, placement.heard) == (17, 1)


@pytest.mark.parametrize(
    ("cluster", "epoch", "term"), [(CLUSTER, 4, 2), (CLUSTER, 5, 1), ("e" * 32, 5, 2)], ids=["epoch", "term", "cluster"]
)
def test_a_primary_whose_time_is_over_is_not_heard(placement: Placement, cluster: str, epoch: int, term: int) -> None:
    assert primary_heard(cluster=cluster, epoch=epoch, heads={KEPT: (term, 17)}) == 0

    placement.refresh_from_db()
    assert (placement.primary_seq, placement.heard) == (10, 0)


def test_a_status_asked_for_with_heads_is_a_sign_of_the_primary(placement: Placement) -> None:
    body = {"cluster": CLUSTER, "epoch": 5, "heads": {KEPT: [2, 42]}}

    response = Client().post(
        "/cluster/node/status", body, content_type="application/json", headers={"X-MLVDB-Node": NODE}
    )

    assert response.status_code == 200
    placement.refresh_from_db()
    assert placement.primary_seq == 42


# The marker


@pytest.mark.django_db(transaction=True)
def test_a_change_of_the_topology_is_announced_when_it_is_committed() -> None:
    seen = [topology_marker()]
    for _ in range(3):
        with transaction.atomic():
            topology_changed()
        seen.append(topology_marker())

    assert seen[0] is None
    assert len(set(seen)) == 4


@pytest.mark.django_db(transaction=True)
def test_a_change_that_was_rolled_back_is_not_announced() -> None:
    before = topology_marker()

    with transaction.atomic():
        topology_changed()
        transaction.set_rollback(True)

    assert topology_marker() == before
