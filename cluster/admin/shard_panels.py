"""The parts of the shard pages that are renewed while they are looked at: each is a template over what is known."""

from __future__ import annotations

from django.db.models import Q
from django.template.loader import render_to_string
from django.utils.safestring import SafeString

from cluster.admin.history import events_about
from cluster.admin.move_truth import moves_now
from cluster.admin.shard_truth import ShardNow, shards_now
from cluster.admin.truth import MORE_BARS, MORE_BARS_WIDTH
from cluster.models import SLOT_KINDS, Assignment, Move, MoveStep, Shard, Topology

_MOVES = 5


def health_part(now: ShardNow) -> SafeString:
    """Return state, health, URL and last error of a shard."""
    return render_to_string("admin/cluster/shard/health.html", {"now": now})


def cell_part(now: ShardNow) -> SafeString:
    """Return what a shard has, and its shares of all."""
    return render_to_string("admin/cluster/shard/load.html", {"now": now})


def node_part() -> SafeString:
    """Return what this node divides, and what moves."""
    context = {
        "topology": Topology.objects.first(),
        "assignment": Assignment.objects.first(),
        "moves": moves_now(list(Move.objects.filter(kind__in=SLOT_KINDS, ended_at=None).order_by("id")[:_MOVES])),
    }
    return render_to_string("admin/cluster/shard/node.html", context)


def shard_part(shard: Shard) -> SafeString:
    """Return all of it for one shard, with its last moves and events."""
    [now] = shards_now([shard], bars=MORE_BARS, width=MORE_BARS_WIDTH)
    steps = MoveStep.objects.filter(Q(source=shard) | Q(target=shard))
    moves = Move.objects.filter(pk__in=steps.values("move")).order_by("-id")[:_MOVES]
    context = {
        "now": now,
        "copies": list(shard.copies.order_by("name")),
        "moves": moves_now(list(moves)),
        "events": events_about(shard.label),
    }
    return render_to_string("admin/cluster/shard/panel.html", context)
