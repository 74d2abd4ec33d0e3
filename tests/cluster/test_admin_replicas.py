"""The admin's replicas: the truth about them, adding, pausing, actions, the pages before a removal and a promotion."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry as HistoryEntry
from django.test import Client
from django.utils import timezone

from cluster.models import ClusterEvent, Move, Replica, ReplicaCopy
from cluster.services import entropy, handover, registry
from cluster.services.promotion import Promotion
from cluster.states import CopyState, Membership, PeerHealth
from tests.cluster.admin_pages import REPLICAS, act, log_grows, page_of, probes, queries_of, staff_with
from tests.cluster.members import become_replica, placement_document
from tests.cluster.registry import Registry
from tests.vectors.admin_site import cells, client_of, messages_of, text_of
from vectors.errors import Conflict
from vectors.models import LogEntry

ADD = f"{REPLICAS}add/"
FORM = {"name": "replica_1", "url": "http://127.0.0.1:9", "shard": ""}


@pytest.fixture
def admin(head, admin_user) -> Client:
    """The superuser's client."""
    return client_of(admin_user)


@pytest.fixture
def told(monkeypatch) -> list[tuple[Any, ...]]:
    """The tasks that would have been published."""
    sent: list[tuple[Any, ...]] = []
    monkeypatch.setattr(registry, "publish", lambda *task: sent.append(task) or True)
    return sent


class TestTruth:
    def test_shows_what_each_copy_has_and_lacks(self, admin, owner: Registry):
        log_grows(owner.head, 8000.0, 7900.0)
        owner.replica("replica_1")
        log_grows(owner.head, 600.0, 7.0, 1.0)
        replica = owner.replica("replica_2", state=CopyState.SYNCING, membership=Membership.NONE)
        ReplicaCopy.objects.filter(replica=replica).update(term=0, seq=0)
        response = admin.get(REPLICAS)
        assert [words.split(" for ")[0] for words in cells(response, "state")] == ["following", "full sync"]
        assert cells(response, "membership") == ["member", "none"]
        assert cells(response, "applied") == ["(1, 2)", "(0, 0)"]
        assert cells(response, "lag") == ["3", "5"]
        assert cells(response, "delay") == ["10 min", "2 h"]

    def test_lacks_nothing_at_the_head(self, admin, owner: Registry):
        log_grows(owner.head, 100.0)
        owner.replica("replica_1")
        response = admin.get(REPLICAS)
        assert (cells(response, "lag"), cells(response, "delay")) == (["0"], ["0 s"])

    def test_counts_entries_of_an_older_term_that_the_primary_does_not_have_as_lacking(self, admin, owner: Registry):
        log_grows(owner.head, 6000.0, 5000.0, 4000.0)
        replica = owner.replica("replica_1")
        ReplicaCopy.objects.filter(replica=replica).update(seq=9)
        log_grows(owner.head, 600.0, 20.0, term=2)
        response = admin.get(REPLICAS)
        assert cells(response, "applied") == ["(1, 9)"]
        assert cells(response, "lag") == ["2"]
        assert cells(response, "delay") == ["10 min"]

    def test_says_more_than_where_the_oldest_operation_it_lacks_is_pruned(self, admin, owner: Registry):
        replica = owner.replica("replica_1")
        log_grows(owner.head, 600.0, 300.0, 30.0)
        LogEntry.objects.filter(seq=1).delete()
        assert cells(admin.get(REPLICAS), "delay") == ["more than 5 min"]
        LogEntry.objects.all().delete()
        assert cells(admin.get(REPLICAS), "delay") == ["unknown"]
        assert str(replica) in text_of(admin.get(page_of(replica)))

    def test_shows_health_since_when_and_the_probes_as_a_picture(self, admin, owner: Registry):
        replica = owner.replica(
            "replica_1",
            health=PeerHealth.DEAD,
            health_since=timezone.now() - timedelta(minutes=12),
            failures=4,
            last_error="refused",
            last_error_at=timezone.now() - timedelta(minutes=3),
            send_failures=3,
            sweeps_to_skip=7,
        )
        probes(replica, True, True, False)
        for url in (REPLICAS, page_of(replica)):
            page = admin.get(url)
            text = text_of(page)
            assert "dead for 12 min" in text
            assert "4 failed in a row" in text
            assert "3 min ago: refused" in text
            assert "3 failed sendings in a row, tried again after 7 sweeps" in text
            content = page.content.decode()
            assert 'aria-label="3 probes from ' in content
            assert content.count('class="probe probe-dead" d="') == 1
            assert content.count('class="probe probe-failed" d="') == 1

    def test_shows_errors_of_other_nodes_as_text(self, admin, owner: Registry):
        replica = owner.replica("replica_1", last_error="<script>alert(1)</script>", last_error_at=timezone.now())
        probes(replica, False)
        replica.health_checks.update(error='"><script>alert(2)</script>')
        for url in (REPLICAS, page_of(replica)):
            content = admin.get(url).content.decode()
            assert "<script>alert" not in content
            assert "&lt;script&gt;alert(1)" in content

    def test_shows_how_far_a_full_sync_is(self, admin, owner: Registry):
        replica = owner.replica("replica_1", state=CopyState.SYNCING)
        Move.objects.create(
            kind=Move.Kind.FULL_SYNC,
            replica=replica,
            replica_name=replica.name,
            shard=owner.head.uid,
            phase="copying",
            rows_done=30_000,
            rows_total=120_000,
            bytes_done=50 * 2**20,
            bytes_total=200 * 2**20,
            work_s=2.0,
        )
        words = "25 % 30,000 of 120,000 rows, 50.0 MB of 200.0 MB, 25.0 MB/s, about 6.0 s left"
        assert words in text_of(admin.get(REPLICAS)).replace("\xa0", " ")
        assert 'value="25"' in admin.get(page_of(replica)).content.decode()

    def test_shows_the_verdict_on_the_contents_and_when_a_person_is_wanted(self, admin, owner: Registry):
        replica = owner.replica("replica_1")
        assert cells(admin.get(REPLICAS), "digest") == ["never compared"]
        ReplicaCopy.objects.update(
            digest_verdict="differs",
            digest_at=timezone.now() - timedelta(minutes=3),
            digest_detail={"waits_for_person": True},
        )
        assert cells(admin.get(REPLICAS), "digest") == ["differs 3 min ago"]
        assert "until a person decides" in text_of(admin.get(page_of(replica)))

    def test_shows_the_members_and_a_change_of_them(self, admin, owner: Registry):
        owner.replica("replica_1")
        owner.replica("replica_2")
        owner.replica("replica_3", membership=Membership.JOINING)
        text = text_of(admin.get(REPLICAS))
        assert "shard_0 ends at (1, 0): 4 members, a quorum is 3; replica_3 is joining ." in text

    def test_needs_as_many_queries_for_thirty_replicas_as_for_one(self, admin, owner: Registry):
        def grow(count: int) -> None:
            for number in range(Replica.objects.count(), count):
                probes(owner.replica(f"replica_{number}"), True, False, True)

        grow(1)
        log_grows(owner.head, 3.0, 2.0)
        live = f"{REPLICAS}live/?" + "&".join(f"id={pk}" for pk in range(1, 100))
        queries_of(admin, REPLICAS)  # what is looked up once and kept
        few = queries_of(admin, REPLICAS), queries_of(admin, live)
        grow(30)
        assert (queries_of(admin, REPLICAS), queries_of(admin, live)) == few
        assert len(cells(admin.get(REPLICAS), "lag")) == 30
        assert max(few) < 25

    def test_is_renewed_by_numbers_that_are_the_same_as_those_of_the_page(self, admin, owner: Registry):
        replica = owner.replica("replica_1")
        log_grows(owner.head, 100.0)
        places = admin.get(f"{REPLICAS}live/?id={replica.pk}").json()
        assert not places["gone"]
        assert set(places["places"]) == {"node", f"health-{replica.pk}", f"copies-{replica.pk}"}
        assert '<td class="field-lag behind">1</td>' in places["places"][f"copies-{replica.pk}"]
        one = admin.get(page_of(replica, "live"))
        assert '<td class="field-lag behind">1</td>' in one.json()["places"][f"replica-{replica.pk}"]
        assert "no-store" in one.headers["Cache-Control"]
        assert f'data-live="replica-{replica.pk}"' in admin.get(page_of(replica)).content.decode()

    def test_says_when_a_replica_on_the_page_is_gone(self, admin, owner: Registry):
        replica = owner.replica("replica_1")
        Replica.objects.filter(pk=replica.pk).delete()
        assert admin.get(f"{REPLICAS}live/?id={replica.pk}&id=x").json()["gone"]
        assert admin.get(page_of(replica, "live")).json() == {"places": {}, "gone": True}

    def test_shows_its_newest_moves_and_changes_with_their_authors(self, admin, owner: Registry):
        replica = owner.replica("replica_1")
        registry.replica_pause(name="replica_1", actor="user ada")
        text = text_of(admin.get(page_of(replica)))
        assert "user ada replica_paused paused True" in text

    def test_says_how_to_enable_replication_where_it_is_not(self, admin):
        page = admin.get(REPLICAS)
        assert "Replication is not enabled. Start the node once with --enable-replication" in text_of(page)
        assert "Add replica" not in text_of(page)

    def test_leads_to_the_primary_on_a_replica(self, admin):
        become_replica(placement_document())
        text = text_of(admin.get(REPLICAS))
        assert "This node is a replica itself. Its primary, http://primary.test:8000 , keeps the registry" in text


class TestAdd:
    def test_registers_it_through_the_service_with_its_author(self, admin, owner: Registry, admin_user, told):
        response = admin.post(ADD, FORM, follow=True)
        replica = Replica.objects.get()
        assert (replica.name, replica.url, replica.shard) == ("replica_1", "http://127.0.0.1:9", "")
        assert any("was added successfully" in message for message in messages_of(response))
        assert any("Its node does not answer yet" in message for message in messages_of(response))
        event = ClusterEvent.objects.get(action="replica_added")
        assert (event.actor, event.subject) == ("user admin", "replica_1")
        entry = HistoryEntry.objects.get()
        assert (entry.user, entry.object_repr, entry.is_addition()) == (admin_user, "replica_1", True)
        assert [args for _, *args in told] == [[replica.pk]]

    def test_keeps_one_shard_when_that_is_chosen(self, admin, owner: Registry, told):
        admin.post(ADD, {**FORM, "shard": owner.head.uid})
        replica = Replica.objects.get()
        assert replica.shard == owner.head.uid
        assert "Keeps: only shard_0" in text_of(admin.get(page_of(replica)))

    def test_says_when_the_same_one_is_there_already(self, admin, owner: Registry, told):
        admin.post(ADD, FORM)
        response = admin.post(ADD, FORM, follow=True)
        assert "Replica replica_1 is registered with that URL already: nothing has changed." in messages_of(response)
        assert (Replica.objects.count(), HistoryEntry.objects.count()) == (1, 1)

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("name", "", "This field is required."),
            ("name", "no spaces", "must be 1 to 128 letters, digits"),
            ("name", "primary", "is a word of the API's paths"),
            ("url", "", "This field is required."),
            ("url", "ftp://elsewhere", "must be the URL of a node"),
            ("url", "http://elsewhere:99999", "is not a URL"),
            ("url", "http://127.0.0.1:8000", "is this node itself"),
            ("url", "http://127.0.0.1:1", "is the replica known's"),
            ("shard", "nothing", "Select a valid choice."),
        ],
    )
    def test_shows_a_refusal_beside_its_field_and_changes_nothing(
        self, admin, owner: Registry, told, field, value, message
    ):
        owner.replica("known")
        response = admin.post(ADD, {**FORM, field: value})
        errors = response.context["adminform"].form.errors
        assert list(errors) == [field]
        assert message in " ".join(errors[field])
        assert Replica.objects.count() == 1
        assert not HistoryEntry.objects.exists()
        assert told == []

    def test_refuses_where_replication_is_not_enabled(self, admin):
        response = admin.post(ADD, FORM)
        assert response.context["adminform"].form.non_field_errors() == ["Replication is not enabled"]
        assert not Replica.objects.exists()


class TestPause:
    def test_is_all_that_may_be_changed(self, admin, owner: Registry, told):
        replica = owner.replica("replica_1")
        admin.post(page_of(replica), {"paused": "on", "name": "other", "url": "http://127.0.0.1:7"})
        replica.refresh_from_db()
        assert (replica.paused, replica.name, replica.url) == (True, "replica_1", "http://127.0.0.1:1")
        assert ClusterEvent.objects.get(action="replica_paused").actor == "user admin"
        assert HistoryEntry.objects.get().get_change_message() == "Changed Paused."
        assert "paused" in text_of(admin.get(REPLICAS))
        admin.post(page_of(replica), {})
        replica.refresh_from_db()
        assert not replica.paused
        assert len(told) == 1

    def test_a_refusal_comes_back_in_the_form(self, admin, owner: Registry, monkeypatch):
        def refuse(**_asked: Any) -> None:
            raise Conflict("not now")

        monkeypatch.setattr(registry, "replica_pause", refuse)
        replica = owner.replica("replica_1")
        response = admin.post(page_of(replica), {"paused": "on"})
        assert response.context["adminform"].form.non_field_errors() == ["not now"]
        replica.refresh_from_db()
        assert not replica.paused

    def test_unchanged_writes_no_event(self, admin, owner: Registry):
        replica = owner.replica("replica_1")
        admin.post(page_of(replica), {})
        assert not ClusterEvent.objects.filter(subject="replica_1").exists()


class TestActions:
    def test_check_probes_and_says_what_has_come_of_it(self, admin, owner: Registry, monkeypatch):
        answers = {"replica_1": True, "replica_2": False}
        monkeypatch.setattr(registry, "probe_now", lambda replicas: {row.name: answers[row.name] for row in replicas})
        owner.replica("replica_1")
        owner.replica("replica_2", last_error="timed out")
        response = act(admin, "check_health", *Replica.objects.all())
        assert messages_of(response) == [
            "Replica replica_1 has answered as it should.",
            "Replica replica_2 has not answered as it should: timed out",
        ]

    def test_sync_starts_a_move_and_writes_its_author(self, admin, owner: Registry, told):
        replica = owner.replica("replica_1")
        response = act(admin, "sync", replica)
        move = Move.objects.get()
        assert messages_of(response) == [f"Replica replica_1: catch-up started (move {move.pk})."]
        assert ClusterEvent.objects.get(action="replica_sync").actor == "user admin"
        assert HistoryEntry.objects.get().get_change_message() == f"Catch-up started (move {move.pk})."
        assert len(told) == 1

    def test_verify_has_contents_compared_and_writes_its_author(self, admin, owner: Registry, monkeypatch):
        sent: list[Any] = []
        monkeypatch.setattr(entropy, "publish", lambda *task: sent.append(task) or True)
        replica = owner.replica("replica_1")
        response = act(admin, "verify", replica)
        assert messages_of(response) == ["Replica replica_1: contents are being compared; the verdict will show here."]
        assert ClusterEvent.objects.get(action="verify_asked").actor == "user admin"
        assert [args for _, *args in sent] == [[replica.pk]]

    def test_pause_and_resume_do_so_for_all_chosen(self, admin, owner: Registry, told):
        for name in ("replica_1", "replica_2"):
            owner.replica(name)
        act(admin, "pause", *Replica.objects.all())
        assert set(Replica.objects.values_list("paused", flat=True)) == {True}
        act(admin, "resume", *Replica.objects.all())
        assert set(Replica.objects.values_list("paused", flat=True)) == {False}
        assert HistoryEntry.objects.count() == 4

    def test_a_refusal_is_told_and_the_others_go_on(self, admin, owner: Registry, told):
        first, second = owner.replica("replica_1", paused=True), owner.replica("replica_2")
        response = act(admin, "sync", first, second)
        assert messages_of(response) == [
            "Replica replica_1: refused: replica replica_1 is paused: resume it first",
            f"Replica replica_2: catch-up started (move {Move.objects.get().pk}).",
        ]
        assert HistoryEntry.objects.count() == 1


class TestRemove:
    def test_says_what_will_happen_before_it_does(self, admin, owner: Registry):
        log_grows(owner.head, 5.0)
        for name in ("replica_1", "replica_2"):
            owner.replica(name)
        log_grows(owner.head, 4.0)
        ReplicaCopy.objects.filter(replica__name="replica_1").update(seq=2)
        response = act(admin, "remove", Replica.objects.get(name="replica_1"))
        text = text_of(response)
        assert "now primary, replica_1, replica_2 3 2" in text
        assert "afterwards primary, replica_2 2 2" in text
        assert "The log ends at (1, 2)." in text
        assert "replica_1 member alive (1, 2) yes" in text
        assert "replica_2 member alive (1, 1) no" in text
        assert "1 of the 2 members that stay has the log up to 2, and 2 must have it" in text
        assert "writes that replica_1 had acknowledged are lost if the primary is lost" in text
        assert "a quorum is both of them" in text
        assert Replica.objects.count() == 2

    def test_removes_a_copy_that_does_not_count_at_once(self, admin, owner: Registry, admin_user):
        replica = owner.replica("replica_1", membership=Membership.NONE)
        page = text_of(admin.get(page_of(replica, "delete")))
        assert "nothing changes for writes and votes" in page
        response = admin.post(page_of(replica, "delete"), {"post": "yes"}, follow=True)
        assert messages_of(response) == ["Replica replica_1 was removed."]
        assert not Replica.objects.exists()
        assert ClusterEvent.objects.get(action="replica_removed").actor == "user admin"
        entry = HistoryEntry.objects.get()
        assert (entry.user, entry.object_repr, entry.is_deletion()) == (admin_user, "replica_1", True)

    def test_shows_a_refusal_on_the_page_and_goes_on_by_force(self, admin, owner: Registry, settings):
        settings.MLVDB_PEER_TIMEOUT_S = 0.3
        replica = owner.replica("replica_1")
        owner.replica("replica_2")
        log_grows(owner.head, 1.0)
        url = f"{REPLICAS}remove/?id={replica.pk}"
        response = admin.post(url, {})
        assert "Refused: replica_1: too few of the members that stay have the log of shard_0 up to 1" in text_of(
            response
        )
        assert Replica.objects.count() == 2
        assert not HistoryEntry.objects.exists()
        admin.post(url, {"force": "on"})
        assert list(Replica.objects.values_list("name", flat=True)) == ["replica_2"]
        assert ClusterEvent.objects.get(action="replica_removed").alarm

    def test_leaves_out_of_the_page_what_was_removed_when_others_are_refused(self, admin, owner: Registry, settings):
        settings.MLVDB_PEER_TIMEOUT_S = 0.3
        owner.replica("replica_0")
        member = owner.replica("replica_1")
        spare = owner.replica("replica_2", membership=Membership.NONE)
        log_grows(owner.head, 1.0)
        response = admin.post(f"{REPLICAS}remove/?id={member.pk}&id={spare.pk}", {})
        assert messages_of(response) == ["Replica replica_2 was removed."]
        assert response.context["title"] == "Remove replica_1"

    def test_django_s_own_deletion_is_not_offered(self, admin, owner: Registry):
        replica = owner.replica("replica_1")
        act(admin, "delete_selected", replica)
        assert Replica.objects.exists()


class TestPromote:
    def test_says_what_will_happen_and_what_stands_against_it(self, admin, owner: Registry, settings):
        log_grows(owner.head, 5.0)
        chosen = owner.replica("replica_1", paused=True)
        owner.replica("replica_2", health=PeerHealth.DEAD)
        log_grows(owner.head, 4.0)
        response = act(admin, "promote", chosen)
        text = text_of(response)
        former = f"node_{settings.MLVDB_NODE_ID[:8]}"
        assert "now primary, replica_1, replica_2 3 2" in text
        assert f"afterwards replica_1 (primary), {former}, replica_2 3 2" in text
        assert "replica_1 is paused: resume it first." in text
        assert "replica_1 lacks 1 operations" in text
        assert "have to vote" not in text  # two of three are there

    def test_says_when_too_few_can_vote(self, admin, owner: Registry):
        replicas = [owner.replica(f"replica_{number}", health=PeerHealth.DEAD) for number in range(1, 5)]
        text = text_of(admin.get(page_of(replicas[0], "promote")))
        assert "3 members have to vote, and replica_1, replica_2, replica_3, replica_4 cannot be reached." in text

    def test_hands_over_and_leads_to_what_this_node_was_told(self, admin, owner: Registry, monkeypatch, admin_user):
        asked: list[dict[str, Any]] = []

        def replica_promote(**asked_with: Any) -> Promotion:
            asked.append(asked_with)
            return Promotion("shard_0", 2, 9, 5)

        monkeypatch.setattr(handover, "replica_promote", replica_promote)
        replica = owner.replica("replica_1")
        response = admin.post(page_of(replica, "promote"), {}, follow=True)
        assert asked == [{"name": "replica_1", "force": False, "actor": "user admin"}]
        assert response.redirect_chain == [("/admin/cluster/placement/", 302)]
        assert messages_of(response)[0].startswith("Replica replica_1 is the primary now, in term 2.")
        assert HistoryEntry.objects.get().get_change_message() == "Promoted: primary of term 2."
        admin.post(page_of(replica, "promote"), {"force": "on"})
        assert asked[1]["force"]

    def test_shows_a_refusal_on_the_page(self, admin, owner: Registry, monkeypatch):
        def refuse(**_asked: Any) -> None:
            raise Conflict("it did not catch up")

        monkeypatch.setattr(handover, "replica_promote", refuse)
        replica = owner.replica("replica_1")
        assert "Refused: it did not catch up" in text_of(admin.post(page_of(replica, "promote"), {}))
        assert not HistoryEntry.objects.exists()

    def test_asks_for_one_replica(self, admin, owner: Registry):
        for name in ("replica_1", "replica_2"):
            owner.replica(name)
        response = act(admin, "promote", *Replica.objects.all())
        assert messages_of(response) == ["Choose one replica: there is one primary."]


class TestPermissions:
    @pytest.fixture
    def replica(self, owner: Registry) -> Replica:
        return owner.replica("replica_1")

    def test_who_may_view_sees_the_truth_and_changes_nothing(self, replica):
        viewer = staff_with("cluster.view_replica")
        assert cells(viewer.get(REPLICAS), "lag") == ["0"]
        assert viewer.get(f"{REPLICAS}live/?id={replica.pk}").status_code == 200
        assert viewer.get(page_of(replica)).status_code == 200
        assert viewer.get(ADD).status_code == 403
        assert viewer.post(page_of(replica), {"paused": "on"}).status_code == 403
        assert viewer.post(page_of(replica, "delete"), {"post": "yes"}).status_code == 403
        assert viewer.post(f"{REPLICAS}remove/?id={replica.pk}", {"force": "on"}).status_code == 403
        assert viewer.post(page_of(replica, "promote"), {}).status_code == 403
        for action in ("sync", "verify", "pause", "promote", "remove"):
            act(viewer, action, replica)
        replica.refresh_from_db()
        assert not replica.paused
        assert not Move.objects.exists()

    @pytest.mark.parametrize(
        "permissions",
        [
            ("cluster.view_replica", "mlvdb_site.operate_node"),
            ("cluster.add_replica", "cluster.change_replica", "cluster.delete_replica"),
        ],
    )
    def test_neither_permission_is_enough_without_the_other(self, replica, permissions):
        client = staff_with(*permissions)
        assert client.get(REPLICAS).status_code == 200
        assert client.get(ADD).status_code == 403
        assert client.post(page_of(replica), {"paused": "on"}).status_code == 403
        assert client.post(page_of(replica, "delete"), {"post": "yes"}).status_code == 403
        assert client.post(page_of(replica, "promote"), {}).status_code == 403
        act(client, "pause", replica)
        replica.refresh_from_db()
        assert not replica.paused

    def test_both_together_are(self, replica, told):
        client = staff_with("cluster.change_replica", "mlvdb_site.operate_node")
        act(client, "pause", replica)
        replica.refresh_from_db()
        assert replica.paused
        assert client.get(page_of(replica, "promote")).status_code == 200

    def test_who_may_not_view_gets_no_numbers(self, replica):
        client = staff_with("cluster.view_move")
        assert client.get(f"{REPLICAS}live/?id={replica.pk}").status_code == 403
        assert client.get(page_of(replica, "live")).status_code == 403
        assert Client().get(f"{REPLICAS}live/").status_code == 302
