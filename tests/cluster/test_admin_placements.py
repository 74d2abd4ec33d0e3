"""The admin of a replica: what its node was told, and its promotion."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry as HistoryEntry
from django.test import Client

from cluster.admin import own_promotion
from cluster.models import ClusterEvent, Placement
from cluster.replication.quorum import PRIMARY
from cluster.services.taking import placement_take
from cluster.states import CopyState
from tests.cluster.admin_pages import queries_of, staff_with
from tests.cluster.members import Members, become_replica, is_replica, own_head, placement_document, with_own
from tests.vectors.admin_site import cells, client_of, messages_of, text_of

PLACEMENTS = "/admin/cluster/placement/"
PROMOTE = f"{PLACEMENTS}promote/"


@pytest.fixture
def admin(head, members: Members, admin_user, monkeypatch) -> Client:
    """The superuser's client; the members are asked what they have by the page too."""
    monkeypatch.setattr(own_promotion, "status_ask", members.status_ask)
    return client_of(admin_user)


class TestTruth:
    def test_shows_what_this_node_was_told_and_what_it_has(self, admin):
        become_replica(placement_document("replica_2"), entries=4)
        Placement.objects.update(primary_seq=9, heard=3)
        response = admin.get(PLACEMENTS)
        assert cells(response, "label") == ["shard_0"]
        assert cells(response, "name") == ["replica_1"]
        assert cells(response, "primary") == ["http://primary.test:8000", "seq 9"]
        assert cells(response, "state") == ["following member"]
        assert cells(response, "applied") == ["(1, 4)"]
        assert cells(response, "lag") == ["5"]
        page = text_of(admin.get(f"{PLACEMENTS}{Placement.objects.get().pk}/change/"))
        assert "replica_2 at http://replica-2.test:8000: following, member" in page
        assert "Promote this node" in page
        assert "Save" not in page

    def test_is_empty_on_a_node_that_was_told_nothing(self, admin):
        text = text_of(admin.get(PLACEMENTS))
        assert "This node was told nothing: it obeys nobody." in text
        assert "Promote this node" not in text
        assert admin.get(PROMOTE).status_code == 302

    def test_is_not_to_be_made_changed_or_deleted(self, admin):
        become_replica(placement_document())
        pk = Placement.objects.get().pk
        assert admin.post(f"{PLACEMENTS}add/", {}).status_code == 403
        assert admin.post(f"{PLACEMENTS}{pk}/change/", {}).status_code == 403
        assert admin.post(f"{PLACEMENTS}{pk}/delete/", {"post": "yes"}).status_code == 403

    def test_needs_as_many_queries_for_many_as_for_one(self, admin):
        become_replica(placement_document())
        queries_of(admin, PLACEMENTS)
        few = queries_of(admin, PLACEMENTS)
        [told] = Placement.objects.values("cluster", "epoch", "role", "term", "document")
        Placement.objects.bulk_create(Placement(shard=f"{number:032x}", **told) for number in range(20))
        assert queries_of(admin, PLACEMENTS) == few


class TestPromotion:
    def test_says_what_will_happen_when_the_primary_is_gone(self, admin, members: Members):
        members.alive("replica_2", seq=3)
        become_replica(placement_document("replica_2"), entries=4)
        Placement.objects.update(primary_seq=6)
        text = text_of(admin.get(PROMOTE))
        assert "now primary, replica_1, replica_2 3 2" in text
        assert "afterwards replica_1 (primary), node_aaaaaaaa, replica_2 3 2" in text
        assert "primary member does not answer – not known" in text
        assert "replica_1 member this node (1, 4) yes" in text
        assert "replica_2 member answers as replica (1, 3) no" in text
        assert "its log ended at 6: at least 2 operations are not here" in text
        assert "Not reached: primary." in text
        assert "votes that are needed" not in text
        assert is_replica()

    def test_says_what_it_will_be_refused_for(self, admin, members: Members):
        members.alive(PRIMARY, seq=9, role="primary")
        become_replica(placement_document("replica_2", "replica_3", "replica_4"), entries=4)
        text = text_of(admin.get(PROMOTE))
        assert "The primary at http://primary.test:8000 answers: promote from there" in text
        assert "primary has more than this copy: promote that one." in text
        assert "2 of the 3 votes that are needed can be had" in text

    def test_says_that_force_does_not_help_a_quarantined_copy(self, admin):
        become_replica(with_own(placement_document(), state=CopyState.QUARANTINED), entries=1)
        assert "This copy is quarantined" in text_of(admin.get(PROMOTE))

    def test_says_that_force_does_not_help_in_the_middle_of_a_full_sync(self, admin):
        become_replica(placement_document())
        Placement.objects.update(primary_seq=4)
        assert "This copy is in the middle of a full sync. Force does not help." in text_of(admin.get(PROMOTE))

    def test_of_a_copy_that_was_removed_makes_a_cluster_of_its_own(self, admin):
        told = placement_document()
        become_replica(told, entries=2)
        others = tuple(copy for copy in told.copies if copy.name != told.name)
        placement_take(placement_document(epoch=4, role="detached", copies=others).to_document())
        text = text_of(admin.get(PROMOTE))
        assert "by force it becomes the primary of a cluster of its own" in text
        assert "afterwards replica_1 (primary) 1 1" in text
        assert "Refused: this copy was removed" in text_of(admin.post(PROMOTE, {}))
        admin.post(PROMOTE, {"force": "on"})
        assert own_head().takes_writes

    def test_makes_this_node_the_primary_and_writes_its_author(self, admin, members: Members, admin_user):
        become_replica(placement_document(), entries=4)
        response = admin.post(PROMOTE, {}, follow=True)
        assert response.redirect_chain == [("/admin/cluster/replica/", 302)]
        assert messages_of(response) == ["This node is the primary now, in term 2."]
        assert own_head().takes_writes
        assert ClusterEvent.objects.get(action="promoted").actor == "user admin"
        entry = HistoryEntry.objects.get()
        assert (entry.user, entry.get_change_message()) == (
            admin_user,
            "Promoted this node: primary of term 2.",
        )

    def test_shows_a_refusal_and_goes_on_by_force(self, admin, members: Members):
        members.alive("replica_2", seq=7)
        become_replica(placement_document("replica_2"), entries=4)
        response = admin.post(PROMOTE, {})
        assert "Refused: replica_2 at http://replica-2.test:8000 has more" in text_of(response)
        assert is_replica()
        assert not HistoryEntry.objects.exists()
        response = admin.post(PROMOTE, {"force": "on"}, follow=True)
        assert not is_replica()
        assert any("What may be lost: replica_2 has entries up to" in words for words in messages_of(response))

    @pytest.mark.parametrize(
        ("permissions", "status"),
        [
            (("cluster.view_placement", "mlvdb_site.operate_node"), 403),
            (("cluster.change_placement",), 403),
            (("cluster.change_placement", "mlvdb_site.operate_node"), 200),
        ],
    )
    def test_needs_both_permissions(self, admin, permissions: Any, status: int):
        become_replica(placement_document())
        client = staff_with(*permissions)
        assert client.get(PROMOTE).status_code == status
        page = text_of(client.get(PLACEMENTS))
        assert ("Promote this node" in page) == (status == 200)
