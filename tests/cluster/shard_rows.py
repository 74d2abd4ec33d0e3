"""Shards of other nodes and moves between shards as the registry's rows alone: nobody listens, nothing is moved."""

from __future__ import annotations

import secrets
from typing import Any

from django.test import Client

from cluster.models import Move, MoveStep, Shard
from cluster.states import PeerHealth, ShardState
from mlvdb_site.markers import topology_changed
from vectors.engine.slots import SlotSet

SHARDS = "/admin/cluster/shard/"
MOVES = "/admin/cluster/move/"
PICTURE = "/admin/cluster/topology/"


def remote_shard(label: str, **fields: Any) -> Shard:
    """Register a shard at a URL where nobody listens; it owns no slots."""
    number = Shard.objects.count() + 1
    values: dict[str, Any] = {
        "url": f"http://127.0.0.1:{number}",
        "node": f"{number:032x}",
        "state": ShardState.ACTIVE,
        "health": PeerHealth.ALIVE,
    }
    shard = Shard.objects.create(label=label, uid=secrets.token_hex(16), **values | fields)
    topology_changed()
    return shard


def move_of_slots(source: Shard, target: Shard, *phases: str, slots: int = 100, **fields: Any) -> Move:
    """Write a redistribution down, with a step in each of some phases."""
    values: dict[str, Any] = {"kind": Move.Kind.REDISTRIBUTE, "phase": "copying", "actor": "user ada"}
    move = Move.objects.create(**values | fields)
    for number, phase in enumerate(phases):
        MoveStep.objects.create(
            move=move,
            uid=secrets.token_hex(16),
            source=source,
            target=target,
            slots=SlotSet.of(range(number * slots, (number + 1) * slots)).packed,
            phase=phase,
            rows_total=1000,
            rows_done=250,
            bytes_total=4_000_000,
            bytes_done=1_000_000,
        )
    topology_changed()
    return move


def page_of_shard(shard: Shard, view: str = "change") -> str:
    """Return the path of a shard's page."""
    return f"{SHARDS}{shard.pk}/{view}/"


def act_on_shards(client: Client, action: str, *shards: Shard, follow: bool = True) -> Any:
    """Run an action on shards from their list."""
    data = {"action": action, "_selected_action": [str(shard.pk) for shard in shards]}
    return client.post(SHARDS, data, follow=follow)
