"""The admin's moves: how far each is, its steps and history; pausing, resuming, cancelling."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry as HistoryEntry
from django.test import Client
from django.utils import timezone

from cluster.models import ClusterEvent, Move, MoveStep, Shard
from cluster.services.changes import event_write
from tests.cluster.admin_pages import queries_of, staff_with
from tests.cluster.shard_rows import MOVES, move_of_slots
from tests.vectors.admin_site import cells, client_of, messages_of, text_of


@pytest.fixture
def admin(head, admin_user) -> Client:
    """The superuser's client."""
    return client_of(admin_user)


@pytest.fixture
def shards(coordinator, monkeypatch) -> list[Shard]:
    """Two shards of this node; no task is sent anywhere."""
    monkeypatch.setattr("cluster.moves.control.publish", lambda *task: True)
    return coordinator(local=2).shards


def page_of(move: Move, view: str = "change") -> str:
    """Return the path of a move's page."""
    return f"{MOVES}{move.pk}/{view}/"


def steer(client: Client, move: Move, verb: str, *, follow: bool = True) -> Any:
    """Press a button of a move's page."""
    return client.post(f"{MOVES}{move.pk}/{verb}/now/", follow=follow)


class TestTruth:
    def test_shows_phase_bar_steps_and_author(self, admin, shards):
        move = move_of_slots(
            *shards,
            "copying",
            "planned",
            rows_done=250,
            rows_total=2000,
            bytes_done=10**6,
            bytes_total=8 * 10**6,
            work_s=0.5,
        )
        response = admin.get(MOVES)
        [cell] = cells(response, "progress_now")
        assert cell.startswith("copying ")
        assert "12 % 250 of 2,000 rows" in cell
        assert "1.9 MB/s, about 3.5 s left" in cell
        assert "steps: 1 planned, 1 copying" in cell
        assert cells(response, "subject") == ["shard_0 to shard_1"]
        assert cells(response, "actor") == ["user ada"]
        page = admin.get(page_of(move))
        assert "shard_0 shard_1 100 copying 25 % 250 of 1,000 rows 976.6 KB of 3.8 MB" in text_of(page)
        assert 'value="25"' in page.content.decode()

    def test_shows_what_keeps_a_step_from_going_on_as_text(self, admin, shards):
        move = move_of_slots(*shards, "following")
        MoveStep.objects.update(error="<b>shard_1</b> is silent", attempts=3)
        for url in (MOVES, page_of(move)):
            page = admin.get(url)
            assert "<b>shard_1</b> is silent (3 attempts in a row; it is tried again)" in text_of(page)
            assert "<b>shard_1" not in page.content.decode()

    def test_does_not_say_that_a_step_that_has_failed_is_tried_again(self, admin, shards):
        move = move_of_slots(*shards, "failed")
        MoveStep.objects.update(error="shard_1 takes no slots", attempts=0)
        for url in (MOVES, page_of(move)):
            text = text_of(admin.get(url))
            assert "shard_1 takes no slots" in text
            assert "tried again" not in text

    def test_shows_the_history_with_its_authors(self, admin, shards):
        move = move_of_slots(*shards, "copying")
        event_write(actor="user ada", action="move_requested", subject=f"move {move.pk}", after={"rows": 7})
        event_write(actor="user bob", action="move_requested", subject=f"move {move.pk + 1}")
        text = text_of(admin.get(page_of(move)))
        assert "user ada move_requested rows 7" in text
        assert "user bob" not in text

    def test_needs_as_many_queries_for_many_moves_as_for_one(self, admin, shards):
        move_of_slots(*shards, "copying", "planned")
        live = f"{MOVES}live/?" + "&".join(f"id={pk}" for pk in range(1, 100))
        queries_of(admin, MOVES)
        few = queries_of(admin, MOVES), queries_of(admin, live)
        for _ in range(20):
            move_of_slots(*shards, "copying", "planned")
        assert (queries_of(admin, MOVES), queries_of(admin, live)) == few

    def test_is_renewed_by_parts_that_are_the_same_as_those_of_the_page(self, admin, shards):
        move = move_of_slots(*shards, "copying", phase="done", ended_at=timezone.now())
        for url, page in ((f"{MOVES}live/?id={move.pk}", MOVES), (page_of(move, "live"), page_of(move))):
            answer = admin.get(url)
            assert "no-store" in answer.headers["Cache-Control"]
            assert answer.json()["places"][f"move-{move.pk}"].strip() in admin.get(page).content.decode()
        assert admin.get(f"{MOVES}live/?id=999").json()["gone"]
        assert admin.get(f"{MOVES}999/live/").json() == {"places": {}, "gone": True}


class TestSteering:
    def test_pause_and_resume_go_through_the_service_with_their_author(self, admin, shards):
        move = move_of_slots(*shards, "planned", phase="planned")
        page = admin.get(page_of(move)).content.decode()
        assert f'formaction="{MOVES}{move.pk}/pause/now/"' in page
        response = steer(admin, move, "pause")
        assert messages_of(response) == [f"Redistribution {move.pk}: paused."]
        assert "paused" in cells(admin.get(MOVES), "progress_now")[0]
        move.refresh_from_db()
        assert move.paused
        assert ClusterEvent.objects.latest("pk").actor == "user admin"
        steer(admin, move, "resume")
        move.refresh_from_db()
        assert not move.paused
        assert [entry.get_change_message() for entry in HistoryEntry.objects.order_by("pk")] == ["Paused.", "Resumed."]

    def test_cancelling_says_what_it_means_first(self, admin, shards):
        move = move_of_slots(*shards, "planned", phase="planned")
        page = admin.get(f"{MOVES}{move.pk}/cancel/now/")
        assert "Slots that have moved do not come back by this" in text_of(page)
        move.refresh_from_db()
        assert not move.cancelled
        assert messages_of(steer(admin, move, "cancel")) == [f"Redistribution {move.pk}: cancelled."]
        move.refresh_from_db()
        assert move.cancelled or move.phase == "cancelled"

    def test_a_get_changes_nothing(self, admin, shards):
        move = move_of_slots(*shards, "planned", phase="planned")
        assert admin.get(f"{MOVES}{move.pk}/pause/now/").url == page_of(move)
        move.refresh_from_db()
        assert not move.paused

    def test_an_unknown_verb_or_move_leads_to_the_list(self, admin, shards):
        move = move_of_slots(*shards, "planned")
        assert steer(admin, move, "explode", follow=False).url == MOVES
        assert admin.post(f"{MOVES}999/pause/now/").url == MOVES

    def test_the_refusal_of_a_move_that_is_over_is_shown(self, admin, shards):
        move = move_of_slots(*shards, "done", phase="done", ended_at=timezone.now())
        assert "formaction" not in admin.get(page_of(move)).content.decode()
        [message] = messages_of(steer(admin, move, "pause"))
        assert message.startswith("Refused: ")
        assert "Refused: " in text_of(steer(admin, move, "cancel"))

    def test_actions_of_the_list_do_the_same(self, admin, shards):
        moves = [move_of_slots(*shards, "planned", phase="planned") for _ in range(2)]
        chosen = [str(move.pk) for move in moves]
        admin.post(MOVES, {"action": "pause", "_selected_action": chosen})
        assert Move.objects.filter(paused=True).count() == 2
        response = admin.post(MOVES, {"action": "cancel", "_selected_action": chosen}, follow=True)
        assert messages_of(response)[-1].startswith("Choose one move")
        response = admin.post(MOVES, {"action": "cancel", "_selected_action": chosen[:1]})
        assert response.url == f"{MOVES}{chosen[0]}/cancel/now/"

    @pytest.mark.parametrize(
        "permissions", [("cluster.view_move", "mlvdb_site.operate_node"), ("cluster.change_move",)]
    )
    def test_needs_the_right_to_change_moves_and_to_operate(self, shards, permissions):
        move = move_of_slots(*shards, "planned", phase="planned")
        client = staff_with(*permissions)
        assert client.get(page_of(move)).status_code == 200
        assert "formaction" not in client.get(page_of(move)).content.decode()
        for verb in ("pause", "resume", "cancel"):
            assert steer(client, move, verb).status_code == 403
        move.refresh_from_db()
        assert not move.paused

    def test_both_together_are_enough(self, shards):
        move = move_of_slots(*shards, "planned", phase="planned")
        client = staff_with("cluster.change_move", "mlvdb_site.operate_node")
        assert steer(client, move, "pause", follow=False).status_code == 302
        move.refresh_from_db()
        assert move.paused
