"""The admin's shards: what each has, adding, weighing, actions, the pages with the plan before rows move."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry as HistoryEntry
from django.test import Client
from django.utils import timezone

from cluster.models import Assignment, ClusterEvent, HealthCheck, Move, MoveStep, Shard
from cluster.services import sharding
from cluster.states import PeerHealth, ShardState
from tests.cluster.admin_pages import queries_of, staff_with
from tests.cluster.shard_rows import SHARDS, act_on_shards, move_of_slots, page_of_shard, remote_shard
from tests.cluster.shards import rows
from tests.vectors.admin_site import cells, client_of, messages_of, text_of
from vectors.engine.slots import ALL_SLOTS
from vectors.models import ShardHead
from vectors.query_processor import LocalQueryProcessor

ADD = f"{SHARDS}add/"
FORM = {"label": "shard_9", "url": "", "weight": "1", "rebalance": "on"}


@pytest.fixture
def admin(head, admin_user) -> Client:
    """The superuser's client."""
    return client_of(admin_user)


@pytest.fixture
def shards(coordinator, monkeypatch) -> list[Shard]:
    """Two shards of this node, half of the slots each; no task is sent anywhere."""
    monkeypatch.setattr("cluster.moves.control.publish", lambda *task: True)
    return coordinator(local=2).shards


class TestTruth:
    def test_shows_what_each_shard_has_and_its_share_of_all(self, admin, coordinator, head):
        cluster = coordinator(local=2)
        Shard.objects.filter(label="shard_0").update(weight=2)
        remote_shard("shard_2", rows=1000, size_bytes=5 * 2**20)
        own, foreign = cluster.ids_of("shard_0", 3000), cluster.ids_of("shard_1", 7)
        LocalQueryProcessor(head.pk).upsert_many(rows(*own, *foreign), namespace="n")
        response = admin.get(SHARDS)
        assert cells(response, "slots") == ["8,192", "8,192", "0"]
        assert cells(response, "part_of_slots") == ["50.0 %", "50.0 %", "0.0 %"]
        assert cells(response, "rows") == ["3,000", "0", "1,000"]
        assert cells(response, "part_of_rows") == ["75.0 %", "0.0 %", "25.0 %"]
        assert cells(response, "bytes")[2] == "5.0 MB"
        assert "weight 2 stands for 50.0 %" in text_of(response)

    def test_shows_state_health_probes_and_the_last_error_of_a_shard_on_another_node(self, admin, shards):
        away = remote_shard(
            "shard_2",
            health=PeerHealth.DEAD,
            health_since=timezone.now() - timedelta(minutes=12),
            failures=4,
            attempts=2,
            last_error="<b>refused</b>",
            last_error_at=timezone.now() - timedelta(minutes=3),
        )
        for ok in (True, False):
            HealthCheck.objects.create(shard=away, ok=ok, health="dead", took_ms=2.5, error="" if ok else "refused")
        for url in (SHARDS, page_of_shard(away)):
            page = admin.get(url)
            text = text_of(page)
            assert "active dead for 12 min" in text
            assert "4 failed in a row" in text
            assert "3 min ago: <b>refused</b>" in text
            assert "its node could not be told its slots: 2 attempts in a row" in text
            assert 'aria-label="2 probes from ' in page.content.decode()
            assert "<b>refused" not in page.content.decode()

    def test_shows_a_damaged_copy_of_this_node(self, admin, shards):
        ShardHead.objects.filter(label="shard_0").update(damage={"lost": 1})
        assert "active damaged" in text_of(admin.get(SHARDS))
        assert "active this node" in text_of(admin.get(SHARDS))

    def test_shows_slots_on_their_way(self, admin, shards):
        move_of_slots(*shards, "copying", "planned", slots=50)
        text = text_of(admin.get(SHARDS))
        assert "on their way: 100 slots to shard_1" in text
        assert "on their way: 100 slots from shard_0" in text
        assert "25 %" in text or "steps: 1 planned, 1 copying" in text

    def test_a_removed_shard_is_none(self, admin, shards):
        gone = remote_shard("gone", state=ShardState.REMOVED)
        assert "gone" not in text_of(admin.get(SHARDS))
        assert admin.get(page_of_shard(gone)).status_code == 302

    def test_needs_as_many_queries_for_thirty_shards_as_for_one(self, admin, shards):
        def grow(count: int) -> None:
            for number in range(Shard.objects.count(), count):
                away = remote_shard(f"remote_{number}")
                HealthCheck.objects.create(shard=away, ok=True, health="alive", took_ms=1)

        grow(3)
        live = f"{SHARDS}live/?" + "&".join(f"id={pk}" for pk in range(1, 100))
        queries_of(admin, SHARDS)
        few = queries_of(admin, SHARDS), queries_of(admin, live)
        grow(30)
        assert (queries_of(admin, SHARDS), queries_of(admin, live)) == few
        assert len(cells(admin.get(SHARDS), "slots")) == 30

    def test_is_renewed_by_numbers_that_are_the_same_as_those_of_the_page(self, admin, shards):
        first = shards[0]
        answer = admin.get(f"{SHARDS}live/?id={first.pk}").json()
        assert not answer["gone"]
        assert set(answer["places"]) == {"node", f"health-{first.pk}", f"load-{first.pk}"}
        assert '<td class="field-slots">8,192</td>' in answer["places"][f"load-{first.pk}"]
        one = admin.get(page_of_shard(first, "live"))
        assert '<td class="field-slots">8,192</td>' in one.json()["places"][f"shard-{first.pk}"]
        assert f'data-live="shard-{first.pk}"' in admin.get(page_of_shard(first)).content.decode()
        assert admin.get(f"{SHARDS}live/?id={first.pk}&id=777").json()["gone"]
        assert admin.get(f"{SHARDS}777/live/").json() == {"places": {}, "gone": True}

    def test_says_how_to_enable_sharding_where_it_is_not(self, admin):
        page = admin.get(SHARDS)
        assert "Sharding is not enabled. Start the node once with --enable-sharding" in text_of(page)
        assert "Add shard" not in text_of(page)

    def test_leads_to_the_coordinator_on_a_shard(self, admin, head):
        Assignment.objects.create(
            shard=head.uid,
            label="shard_3",
            cluster="c" * 32,
            epoch=2,
            coordinator_node="d" * 32,
            coordinator_url="http://coordinator.test:8000",
            slots=ALL_SLOTS.packed,
        )
        text = text_of(admin.get(SHARDS))
        assert "This node is a shard itself: shard_3 of http://coordinator.test:8000" in text
        assert "16,384 slots (100.0 %)" in text_of(admin.get("/admin/cluster/assignment/"))


class TestAdd:
    def test_makes_a_local_shard_and_the_move_that_fills_it(self, admin, shards, admin_user):
        response = admin.post(ADD, FORM, follow=True)
        made = Shard.objects.get(label="shard_9")
        assert (made.is_local, made.weight) == (True, 1.0)
        move = Move.objects.get()
        assert (move.kind, move.actor) == ("rebalance", "user admin")
        assert any("was added successfully" in message for message in messages_of(response))
        assert any(f"/admin/cluster/move/{move.pk}/change/" in message for message in messages_of(response))
        assert ClusterEvent.objects.get(action="shard_added").actor == "user admin"
        entry = HistoryEntry.objects.get()
        assert (entry.user, entry.object_repr, entry.is_addition()) == (admin_user, "shard_9", True)

    def test_leaves_it_empty_when_that_is_wished(self, admin, shards):
        admin.post(ADD, {**FORM, "rebalance": ""})
        assert Shard.objects.filter(label="shard_9").exists()
        assert not Move.objects.exists()

    def test_takes_one_whose_node_does_not_answer_yet_and_says_so(self, admin, shards):
        response = admin.post(ADD, {**FORM, "url": "http://127.0.0.1:9"}, follow=True)
        assert any("Its node does not answer yet" in message for message in messages_of(response))
        assert Shard.objects.get(label="shard_9").state == ShardState.NEW

    def test_says_when_the_same_one_is_there_already(self, admin, shards):
        admin.post(ADD, FORM)
        response = admin.post(ADD, FORM, follow=True)
        assert "Shard shard_9 is there with that URL already: nothing has changed." in messages_of(response)
        assert (Shard.objects.count(), HistoryEntry.objects.count()) == (3, 1)

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("label", "", "This field is required."),
            ("label", "no spaces", "must be 1 to 128 letters, digits"),
            ("label", "redistribute-all", "is a word of the API's paths"),
            ("url", "ftp://elsewhere", "must be the URL of a node"),
            ("url", "http://127.0.0.1:8000", "is this node itself"),
            ("url", "http://127.0.0.1:3", "is the shard known's"),
            ("weight", "0", "weight is more than 0"),
            ("weight", "nan", "Enter a number."),
            ("weight", "", "This field is required."),
        ],
    )
    def test_shows_a_refusal_beside_its_field_and_changes_nothing(self, admin, shards, field, value, message):
        remote_shard("known")
        response = admin.post(ADD, {**FORM, field: value})
        errors = response.context["adminform"].form.errors
        assert list(errors) == [field]
        assert message in " ".join(errors[field])
        assert Shard.objects.count() == 3
        assert not HistoryEntry.objects.exists()
        assert not Move.objects.exists()

    def test_refuses_where_sharding_is_not_enabled(self, admin):
        response = admin.post(ADD, FORM)
        assert response.context["adminform"].form.non_field_errors() == ["Sharding is not enabled"]
        assert not Shard.objects.exists()


class TestWeight:
    def test_and_failover_are_all_that_may_be_changed(self, admin, shards):
        first = shards[0]
        given = {"weight": "2.5", "auto_failover": "on", "label": "other", "url": "http://127.0.0.1:7"}
        admin.post(page_of_shard(first), given)
        first.refresh_from_db()
        assert (first.weight, first.label, first.url) == (2.5, "shard_0", "")
        event = ClusterEvent.objects.get(action="shard_changed")
        assert (event.actor, event.before, event.after) == ("user admin", {"weight": 1.0}, {"weight": 2.5})
        assert not Move.objects.exists()
        admin.post(page_of_shard(first), {"weight": "2.5"})
        first.refresh_from_db()
        assert (first.weight, first.auto_failover) == (2.5, False)

    def test_a_refusal_comes_back_beside_the_field(self, admin, shards):
        response = admin.post(page_of_shard(shards[0]), {"weight": "-1"})
        assert "weight is more than 0" in " ".join(response.context["adminform"].form.errors["weight"])
        shards[0].refresh_from_db()
        assert shards[0].weight == 1.0


class TestActions:
    def test_check_says_what_has_come_of_it(self, admin, shards, monkeypatch):
        remote_shard("shard_2", last_error="timed out")
        monkeypatch.setattr(sharding, "shard_check", lambda *, label: label != "shard_2")
        response = act_on_shards(admin, "check_health", *Shard.objects.exclude(label="shard_1"))
        assert messages_of(response) == [
            "Shard shard_0 has answered as it should.",
            "Shard shard_2 has not answered as it should: timed out",
        ]

    @pytest.mark.parametrize(("action", "page"), [("drain", "delete"), ("redistribute", "redistribute")])
    def test_those_of_one_shard_lead_to_their_page(self, admin, shards, action, page):
        response = act_on_shards(admin, action, shards[1], follow=False)
        assert response.url == page_of_shard(shards[1], page)
        response = act_on_shards(admin, action, *shards)
        assert messages_of(response)[0].startswith("Choose ")

    def test_a_rebalance_leads_to_its_page(self, admin, shards):
        assert act_on_shards(admin, "rebalance", shards[0], follow=False).url == f"{SHARDS}rebalance/"


class TestPlans:
    def test_a_rebalance_shows_what_moves_and_asks_before_it_does(self, admin, shards):
        Shard.objects.filter(label="shard_0").update(weight=3)
        page = admin.get(f"{SHARDS}rebalance/")
        text = text_of(page)
        assert "4,096 slots move with 0 rows" in text
        assert "shard_1 shard_0 4096 0" in text
        assert not Move.objects.exists()
        response = admin.post(f"{SHARDS}rebalance/", follow=True)
        move = Move.objects.get()
        assert (move.kind, move.actor) == ("rebalance", "user admin")
        assert response.redirect_chain[-1][0] == f"/admin/cluster/move/{move.pk}/change/"

    def test_a_rebalance_that_moves_nothing_has_no_button(self, admin, shards):
        page = admin.get(f"{SHARDS}rebalance/")
        assert "Nothing has to move." in text_of(page)
        assert 'value="Rebalance"' not in page.content.decode()

    def test_a_redistribution_asks_where_to_then_shows_the_plan(self, admin, shards):
        url = page_of_shard(shards[0], "redistribute")
        page = admin.get(url)
        assert '<option value="shard_1">' in page.content.decode()
        assert '<option value="shard_0">' not in page.content.decode()
        assert "Select a valid choice" in text_of(admin.get(f"{url}?target=shard_0"))
        plan = f"{url}?target=shard_1"
        assert "8,192 slots move with 0 rows" in text_of(admin.get(plan))
        admin.post(plan)
        move = Move.objects.get()
        assert (move.kind, move.actor) == ("redistribute", "user admin")

    def test_a_redistribution_says_where_there_is_no_other_shard(self, admin, coordinator):
        [only] = coordinator(local=1).shards
        assert "There is no other shard" in text_of(admin.get(page_of_shard(only, "redistribute")))

    def test_a_removal_shows_the_plan_then_drains(self, admin, shards):
        url = page_of_shard(shards[1], "delete")
        assert "8,192 slots move with 0 rows" in text_of(admin.get(url))
        response = admin.post(url, follow=True)
        move = Move.objects.get()
        assert (move.kind, move.actor) == ("drain", "user admin")
        shards[1].refresh_from_db()
        assert shards[1].state == ShardState.DRAINING
        assert any("is being drained" in message for message in messages_of(response))

    def test_an_empty_shard_is_removed_at_once(self, admin, shards):
        admin.post(ADD, {**FORM, "rebalance": ""})
        empty = Shard.objects.get(label="shard_9")
        response = admin.post(page_of_shard(empty, "delete"), follow=True)
        assert "Shard shard_9 was removed." in messages_of(response)
        assert "shard_9" not in cells(response, "label")
        assert ClusterEvent.objects.get(action="shard_removed").actor == "user admin"
        assert HistoryEntry.objects.latest("pk").is_deletion()

    def test_the_last_shard_is_refused_in_the_words_of_the_api(self, admin, coordinator):
        [only] = coordinator(local=1).shards
        response = admin.post(page_of_shard(only, "delete"), {"force": "on"})
        assert "Refused: shard_0 is the last shard: add another one first" in text_of(response)
        assert Shard.objects.get().state == ShardState.ACTIVE

    def test_one_that_cannot_be_reached_is_refused_with_its_rows_and_goes_by_force(self, admin, coordinator):
        cluster = coordinator(local=1, remote=1)
        [away] = cluster.remote
        cluster.shard("remote_0", rows=77)
        away.close()
        shard = Shard.objects.get(label="remote_0")
        url = page_of_shard(shard, "delete")
        assert "The 77 rows it had when it was last heard are lost" in text_of(admin.get(url))
        assert "has 77 rows, as far as is known, and its node does not answer" in text_of(admin.post(url))
        shard.refresh_from_db()
        assert shard.state == ShardState.ACTIVE
        admin.post(url, {"force": "on"})
        shard.refresh_from_db()
        assert shard.state == ShardState.REMOVED
        assert ClusterEvent.objects.filter(alarm=True, subject="remote_0").exists()


class TestPermissions:
    def test_a_viewer_sees_everything_and_changes_nothing(self, shards):
        viewer = staff_with("cluster.view_shard")
        first = shards[0]
        assert cells(viewer.get(SHARDS), "slots") == ["8,192", "8,192"]
        assert viewer.get(f"{SHARDS}live/?id={first.pk}").status_code == 200
        assert viewer.get(page_of_shard(first)).status_code == 200
        assert viewer.get(ADD).status_code == 403
        for page in ("change", "delete", "redistribute"):
            assert viewer.post(page_of_shard(first, page), {"weight": "2"}).status_code == 403
        assert viewer.post(f"{SHARDS}rebalance/").status_code == 403
        assert not Move.objects.exists()

    @pytest.mark.parametrize(
        "permissions",
        [
            ("cluster.view_shard", "mlvdb_site.operate_node"),
            ("cluster.add_shard", "cluster.change_shard", "cluster.delete_shard"),
        ],
    )
    def test_neither_permission_is_enough_without_the_other(self, shards, permissions):
        client = staff_with(*permissions)
        assert client.get(ADD).status_code == 403
        assert client.post(page_of_shard(shards[0]), {"weight": "2"}).status_code == 403
        assert client.post(page_of_shard(shards[0], "delete")).status_code == 403
        assert client.post(f"{SHARDS}rebalance/").status_code == 403
        assert Shard.objects.get(label="shard_0").weight == 1.0

    def test_who_may_not_view_gets_no_numbers(self, shards):
        client = staff_with("cluster.view_move")
        assert client.get(f"{SHARDS}live/").status_code == 403
        assert client.get(page_of_shard(shards[0], "live")).status_code == 403
        assert Client().get(f"{SHARDS}live/").status_code == 302


class TestBanner:
    def test_names_dead_and_refused_shards_failed_moves_and_steps_that_do_not_go_on(self, admin, shards):
        ago = timezone.now() - timedelta(minutes=5)
        dead = remote_shard("shard_2", health=PeerHealth.DEAD, rows=5, health_since=ago)
        remote_shard("shard_3", state=ShardState.REFUSED, last_error="holds rows <b>")
        move_of_slots(shards[0], dead, phase="failed", error="no way", ended_at=ago)
        move = move_of_slots(shards[0], dead, "copying")
        MoveStep.objects.filter(move=move).update(error="silent", attempts=6)
        text = text_of(admin.get("/admin/"))
        assert "Shard shard_2 has been dead for 5 min : searches leave out its 5 rows and say so" in text
        assert "The node of shard shard_3 will not be it: holds rows <b>" in text
        assert "has failed, 5 min ago: no way" in text
        assert "does not go on from shard_0 to shard_2: silent (6 attempts in a row)" in text

    def test_is_quiet_about_what_is_well_or_over(self, admin, shards):
        remote_shard("shard_2")
        remote_shard("gone", state=ShardState.REMOVED, health=PeerHealth.DEAD)
        old = move_of_slots(*shards, phase="failed", ended_at=timezone.now() - timedelta(days=3))
        move = move_of_slots(*shards, "copying")
        MoveStep.objects.filter(move=move).update(error="silent", attempts=1)
        text = text_of(admin.get("/admin/"))
        assert "dead" not in text
        assert "failed" not in text, old
        assert "does not go on" not in text
