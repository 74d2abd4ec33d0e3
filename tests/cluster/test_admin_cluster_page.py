"""The page that draws the cluster: what it shows of a coordinator, a primary, a replica, a shard and a lone node."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest
from django.test import Client

from cluster.admin.cluster_truth import cluster_now
from cluster.admin.drawing import Arrow, CopyBox, NodeBox, ShardBox, drawing_of
from cluster.models import Assignment, Move, MoveStep, Replica, ReplicaCopy, Shard, Topology
from cluster.states import CopyState, Membership, PeerHealth, ShardState
from cluster.topology import topology_forget
from mlvdb_site.markers import topology_changed
from tests.cluster.admin_pages import queries_of, staff_with
from tests.cluster.members import become_replica, placement_document
from tests.cluster.registry import Registry
from tests.cluster.shard_rows import PICTURE, move_of_slots, remote_shard
from tests.vectors.admin_site import client_of, text_of
from vectors.engine.slots import SlotSet
from vectors.models import ShardHead

NODE = NodeBox("Coordinator", "good", ("http://c", "node x", "epoch 1"), is_self=True)


@pytest.fixture
def admin(head, admin_user) -> Client:
    """The superuser's client."""
    return client_of(admin_user)


def svg_of(page: Any) -> ElementTree.Element:
    """Return the picture of a page, read as XML: what does not close is found."""
    [found] = re.findall(r'<svg class="cluster".*?</svg>(?=\s*<[ph])', page.content.decode(), flags=re.S)
    return ElementTree.fromstring(found)


def box(label: str, *copies: str) -> ShardBox:
    """Return a shard's box with copies."""
    return ShardBox(
        label,
        label,
        "good",
        "active",
        "on this node",
        "some",
        0.5,
        copies=[CopyBox(name, "good", "") for name in copies],
    )


class TestDrawing:
    def test_boxes_do_not_overlap_however_many_copies_there_are(self):
        drawing = drawing_of(NODE, [box("a", *"bcdefg"), box("h"), box("i", "j")], [])
        placed = [drawing.node, *(at for row in drawing.shards for at in (row.shard, *row.copies))]
        assert len(placed) == 1 + 3 + 7
        for number, one in enumerate(placed):
            assert one.x >= 0
            assert one.x + one.width <= drawing.width
            assert one.y + one.height <= drawing.height
            for other in placed[number + 1 :]:
                apart = one.x + one.width <= other.x or other.x + other.width <= one.x
                assert apart or one.y + one.height <= other.y or other.y + other.height <= one.y

    def test_each_arrow_has_a_lane_of_its_own_between_the_node_and_the_shards(self):
        shards = [box(label) for label in "abc"]
        arrows = [Arrow(one, other, "", 0.5, "busy") for one in "abc" for other in "abc" if one != other]
        drawing = drawing_of(NODE, shards, arrows)
        lanes = [arrow.x for arrow in drawing.arrows]
        assert len(set(lanes)) == len(lanes) == 5
        assert drawing.left_out == 1
        assert all(drawing.node.x + drawing.node.width < x < drawing.shards[0].shard.x for x in lanes)

    def test_an_arrow_to_a_shard_that_is_not_drawn_is_counted_as_left_out(self):
        drawing = drawing_of(NODE, [box("a")], [Arrow("a", "gone", "", None, "busy")])
        assert (drawing.arrows, drawing.left_out) == ([], 1)

    def test_a_bar_is_as_long_as_the_share(self):
        [row] = drawing_of(NODE, [box("a")], []).shards
        assert row.bar * 2 == row.bar_room


class TestPage:
    def test_draws_shards_copies_and_moves_with_their_health(self, admin, coordinator, head):
        coordinator(local=2)
        shard_0, shard_1 = Shard.objects.order_by("label")
        away = remote_shard("shard_2", health=PeerHealth.DEAD, rows=1234)
        replica = Replica.objects.create(name="replica_1", url="http://127.0.0.1:99", health=PeerHealth.ALIVE)
        ReplicaCopy.objects.create(replica=replica, shard=head.uid, state=CopyState.FOLLOWING, membership="member")
        ShardHead.objects.filter(pk=head.pk).update(last_seq=7)
        move = move_of_slots(shard_0, away, "copying", "planned")
        page = admin.get(PICTURE)
        text = text_of(page)
        assert "3 shards; 1 more copy of them; slots on their way between 1 pair of shards; not well: shard_2." in text
        labels = [link.get("aria-label") for link in svg_of(page).iter("a")]
        assert labels == [
            "shard_0: active, on this node, 8,192 slots (50.0 %), 0 rows, 0\xa0bytes",
            "Copy of shard_0 at replica_1: following, alive, lag 7",
            "shard_1: active, on this node, 8,192 slots (50.0 %), 0 rows, 0\xa0bytes",
            f"shard_2: active, dead, {away.url}, 0 slots (0.0 %), 1,234 rows, 0\xa0bytes",
            "shard_0 to shard_2: 200 slots, planned and copying, 25.0 %",
        ]
        links = [link.get("href") for link in svg_of(page).iter("a")]
        assert links[-1] == f"/admin/cluster/move/{move.pk}/change/"
        assert links[2] == f"/admin/cluster/shard/{shard_1.pk}/change/"

    def test_says_in_a_table_what_it_draws(self, admin, coordinator):
        coordinator(local=1)
        move_of_slots(Shard.objects.get(), remote_shard("shard_1", state=ShardState.NEW), "following")
        text = text_of(admin.get(PICTURE)).partition("The same in words")[2]
        assert "shard_0 on this node active 16,384 slots (100.0 %), 0 rows, 0 bytes none" in text
        assert "shard_1 http://127.0.0.1:2 new, alive 0 slots (0.0 %)" in text
        assert "shard_0 to shard_1: 100 slots, following, 25.0 %" in text

    def test_is_renewed_by_a_picture_that_is_the_same_as_that_of_the_page(self, admin, coordinator):
        coordinator(local=2)
        page = admin.get(PICTURE).content.decode()
        answer = admin.get(f"{PICTURE}live/")
        assert answer.json()["places"]["cluster"] in page
        assert "no-store" in answer.headers["Cache-Control"]
        assert 'data-live="cluster"' in page

    def test_needs_as_many_queries_for_much_as_for_little(self, admin, coordinator):
        coordinator(local=2)
        shard_0, shard_1 = Shard.objects.order_by("label")
        move_of_slots(shard_0, shard_1, "copying")
        queries_of(admin, PICTURE)
        few = queries_of(admin, PICTURE)
        for number in range(10):
            move_of_slots(remote_shard(f"remote_{number}"), shard_0, "copying", "planned")
        queries_of(admin, PICTURE)  # the picture of the topology is read anew, once
        assert queries_of(admin, PICTURE) <= few

    def test_shows_a_paused_move_and_one_that_does_not_go_on_as_such(self, coordinator):
        coordinator(local=2)
        shard_0, shard_1 = Shard.objects.order_by("label")
        move = move_of_slots(shard_0, shard_1, "copying", paused=True)
        [arrow] = cluster_now().arrows
        assert (arrow.tone, "paused" in arrow.words) == ("warn", True)
        MoveStep.objects.filter(move=move).update(error="shard_1 is silent", attempts=4)
        [arrow] = cluster_now().arrows
        assert (arrow.tone, "shard_1 is silent" in arrow.words) == ("bad", True)

    def test_shows_what_moves_that_wait_for_their_turn_will_do(self, coordinator):
        coordinator(local=2)
        steps = [{"source": "shard_0", "target": "shard_1", "slots": 7}, {"source": "gone", "target": "x", "slots": 1}]
        Move.objects.create(kind=Move.Kind.REDISTRIBUTE, plan={"steps": steps})
        Move.objects.create(kind=Move.Kind.REDISTRIBUTE, plan={"steps": steps}, phase="done")
        [arrow] = cluster_now().arrows
        assert (arrow.words, arrow.part) == ("shard_0 to shard_1: 7 slots, waits for its turn", None)

    def test_shows_names_of_others_as_text(self, admin, coordinator):
        coordinator(local=1)
        remote_shard("<script>x</script>", url="http://a.test/<script>y</script>")
        assert "<script>x" not in admin.get(PICTURE).content.decode()
        svg_of(admin.get(PICTURE))

    def test_draws_a_primary_with_its_replicas(self, admin, owner: Registry):
        owner.replica("replica_1", membership=Membership.JOINING)
        page = admin.get(PICTURE)
        assert "Primary" in text_of(page)
        assert "replica_1 following, member: joining, alive, lag 0" in text_of(page)
        svg_of(page)

    def test_draws_what_a_replica_was_told(self, admin):
        become_replica(placement_document())
        page = admin.get(PICTURE)
        assert "Primary: http://primary.test:8000, node" in text_of(page)
        assert "(this node)" in text_of(page)
        svg_of(page)

    def test_draws_a_shard_below_its_coordinator(self, admin, head):
        Topology.objects.create(cluster="d" * 32)
        Assignment.objects.create(
            shard=head.uid,
            label="shard_7",
            cluster="c" * 32,
            epoch=5,
            coordinator_node="e" * 32,
            coordinator_url="http://coordinator.test:8000",
            slots=SlotSet.of(range(4096)).packed,
        )
        topology_changed()
        topology_forget()
        text = text_of(admin.get(PICTURE))
        assert "Coordinator: http://coordinator.test:8000, node eeeeeeee, told in epoch 5" in text
        assert "shard_7 on this node primary 4,096 slots (25.0 %), its log ends at (1, 0) here" in text

    def test_draws_a_node_in_no_cluster(self, admin):
        page = admin.get(PICTURE)
        assert "Single node" in text_of(page)
        svg_of(page)

    def test_who_may_not_view_the_topology_sees_nothing_of_it(self, head):
        client = staff_with("cluster.view_move")
        assert client.get(PICTURE).status_code == 403
        assert client.get(f"{PICTURE}live/").status_code == 403
        assert Client().get(PICTURE).status_code == 302
