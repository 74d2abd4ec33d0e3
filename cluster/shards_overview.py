"""What people and dashboards are shown of the shards: slots, rows, health, and where an id is."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from cluster.health.shards import healthy_shards, shards_check
from cluster.models import Shard, ShardCopy
from cluster.services.sharding_rows import check_coordinator
from cluster.sharding.view import ShardingView
from cluster.states import PeerHealth, ShardState
from cluster.topology import topology
from vectors.engine.ids import slot_of
from vectors.errors import MLVectorDBError
from vectors.models import ShardHead
from vectors.query_processor.moving import MovingCopy

_LOOK_EVERY_S = 1.0
_ASKED = frozenset({PeerHealth.UNKNOWN, PeerHealth.ALIVE})
"""Whom it is worth to wait for: the round asks the others."""

#: Shard → when this process last had its node probed for people.
_looked_at: dict[int, float] = {}


def sharding_info() -> dict[str, Any]:
    """Return the answer of `/sharding/info` on a coordinator; raise ShardingNotEnabled elsewhere.

    Nodes of shards that are not known to be down are probed for it, all at once, unless that was done a moment ago:
    `vector_count` and health are theirs of now.
    """
    row = check_coordinator()
    rows = _looked_at_now()
    view = topology().sharding
    healthy = healthy_shards(rows)
    shards = {row.label: _shard(row, view, is_healthy=row.label in healthy) for row in rows}
    return {
        "total_shards": len(shards),
        "healthy_shards": len(healthy),
        "sharding_strategy": row.strategy,
        "epoch": row.epoch,
        "shards": shards,
    }


def sharding_section() -> dict[str, Any] | None:
    """Return the section `sharding` of `/storage/info`, None where there is nothing to say."""
    picture = topology()
    if picture.sharding is not None:
        shards = shards_now()
        return {
            "role": "coordinator",
            "total_shards": len(shards),
            "healthy_shards": len(healthy_shards(shards)),
            "sharding_strategy": picture.sharding.strategy,
            "epoch": picture.epoch,
        }
    if picture.assignment is not None:
        told = picture.assignment
        return {
            "role": "shard",
            "shard_id": told.label,
            "coordinator_url": told.coordinator_url,
            "slots": len(told.slots),
            "epoch": told.epoch,
        }
    return None


def location(key: bytes) -> dict[str, Any]:
    """Return the shard and slot of an id, and the copies of that shard. Raise ShardingNotEnabled."""
    check_coordinator()
    picture = topology()
    view = picture.sharding
    assert view is not None
    slot = slot_of(key)
    member = view.owner_of(slot)
    shard = picture.shards.get(member.uid)
    copies = [{"name": "primary", "url": member.url or None, "is_primary": True}]
    for copy in () if shard is None else shard.copies:
        copies.append({"name": copy.name, "url": copy.url, "is_primary": False})
    if not member.is_local:
        known = ShardCopy.objects.filter(shard_id=member.number).order_by("name")
        copies += [{"name": copy.name, "url": copy.url, "is_primary": False} for copy in known]
    return {"shard_id": member.label, "slot": slot, "copies": copies}


def shards_now() -> list[Shard]:
    """Return the shards of this coordinator, removed ones left out."""
    return [shard for shard in Shard.objects.all() if ShardState(shard.state).is_shard]


def shard_holds(shard: Shard, owned: np.ndarray | None) -> tuple[int, int]:
    """Return rows and bytes of a shard in the slots it owns, (16384,) bool; of another node's as of its last probe."""
    if not shard.is_local:
        return shard.rows, shard.size_bytes
    head = ShardHead.objects.filter(uid=shard.uid).first()
    if head is None or owned is None:
        return 0, 0
    try:
        rows, sizes = MovingCopy(head.pk).slot_counts()
    except MLVectorDBError:
        # Its health says what is wrong with it.
        return shard.rows, shard.size_bytes
    return int(rows[owned].sum()), int(sizes[owned].sum())


def _looked_at_now() -> list[Shard]:
    rows, now = shards_now(), time.monotonic()
    asked = [row for row in rows if not row.is_local and PeerHealth(row.health) in _ASKED]
    asked = [row for row in asked if now - _looked_at.get(row.pk, -_LOOK_EVERY_S) >= _LOOK_EVERY_S]
    if not asked:
        return rows
    _looked_at.update({row.pk: now for row in asked})
    shards_check(asked)
    return shards_now()


def _shard(shard: Shard, view: ShardingView | None, *, is_healthy: bool) -> dict[str, Any]:
    member = None if view is None else view.by_uid.get(shard.uid)
    found: dict[str, Any] = {
        "is_healthy": is_healthy,
        "is_local": shard.is_local,
        "vector_count": shard.rows,
        "slots": 0 if member is None else len(member.slots),
        "weight": shard.weight,
        "state": shard.state,
        "size_bytes": shard.size_bytes,
    }
    if shard.is_local:
        found["vector_count"], found["size_bytes"] = shard_holds(shard, None if member is None else member.slots.mask)
    else:
        found |= {
            "url": shard.url,
            "node": shard.node or None,
            "health": shard.health,
            "last_health_check": None if shard.checked_at is None else shard.checked_at.isoformat(),
            "last_error": shard.failover_error or shard.last_error or None,
            "auto_failover": shard.auto_failover,
            "failover": shard.failover or None,
            "replicas": list(ShardCopy.objects.filter(shard=shard).values_list("name", flat=True)),
        }
    return found
