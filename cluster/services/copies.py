"""The states of replicas' copies: changed by compare-and-set through `cluster.states`, each change with its event."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping
from typing import Any

from django.db import transaction
from django.utils import timezone

from cluster.models import ClusterEvent, Replica, ReplicaCopy, Topology
from cluster.services.changes import TASK, Unchanged, event_write, registry_change
from cluster.states import COPY_TRANSITIONS, CopyState, allowed
from mlvdb_site.markers import topology_changed
from vectors.models import ShardHead

logger = logging.getLogger(__name__)

_TRIES = 3


def copies_of(replica: Replica) -> list[tuple[ReplicaCopy, ShardHead]]:
    """Return the copies that a replica keeps with this node's own heads of their shards, making rows for new shards."""
    heads = {head.uid: head for head in ShardHead.objects.filter(is_primary=True).order_by("label")}
    wanted = {uid for uid in heads if replica.shard in ("", uid)}
    rows = {copy.shard: copy for copy in ReplicaCopy.objects.filter(replica=replica)}
    if wanted - rows.keys() and Topology.objects.filter(is_owner=True).exists():
        with registry_change(actor=TASK, action="copies_added", subject=replica.name) as change:
            if not Replica.objects.filter(pk=replica.pk).exists():
                raise Unchanged
            for uid in sorted(wanted - rows.keys()):
                rows[uid], _ = ReplicaCopy.objects.get_or_create(replica=replica, shard=uid)
            change.after = {"shards": sorted(rows)}
            change.epoch_raise()
    return [(rows[uid], head) for uid, head in heads.items() if uid in rows]


def copy_state_set(
    copy: ReplicaCopy,
    new: CopyState,
    *,
    actor: str = TASK,
    reason: str = "",
    fields: Mapping[str, Any] | None = None,
    only_from: Container[CopyState] | None = None,
) -> bool:
    """Change the state of a copy, `fields` of its row with it; return whether it has that state now.

    False, with `copy` as it is now, where the table has no such transition from the state it turned out to have, where
    that is not in `only_from`, and for a copy that is gone. The epoch is raised where others must know: whether it may
    be read, or is quarantined.
    """
    values = dict(fields or {})
    for _ in range(_TRIES):
        row = ReplicaCopy.objects.select_related("replica").filter(pk=copy.pk).first()
        if row is None:
            return False
        old = CopyState(row.state)
        for field in ReplicaCopy._meta.concrete_fields:
            setattr(copy, field.attname, getattr(row, field.attname))
        if old is new and not values:
            return True
        if not allowed(COPY_TRANSITIONS, old, new) or (only_from is not None and old not in only_from):
            logger.info("transition_refused replica=%s from=%s to=%s", row.replica.name, old, new)
            return False
        if _state_changed(row, old, new, values, actor=actor, reason=reason):
            copy.state = new
            for name, value in values.items():
                setattr(copy, name, value)
            return True
    return False


def _state_changed(
    row: ReplicaCopy, old: CopyState, new: CopyState, values: dict[str, Any], *, actor: str, reason: str
) -> bool:
    changed = False
    if old is not new:
        values = {"state_since": timezone.now(), **values}
    with registry_change(actor=actor, action=f"copy_{new.value}", subject=row.replica.name) as change:
        changed = bool(ReplicaCopy.objects.filter(pk=row.pk, state=old).update(state=new, **values))
        if not changed:
            raise Unchanged
        change.before = {"state": old.value, "shard": row.shard}
        change.after = {"state": new.value, "shard": row.shard, **({"reason": reason} if reason else {})}
        change.alarm = new is CopyState.QUARANTINED and old is not new
        if _concerns_others(old) != _concerns_others(new):
            change.epoch_raise()
    logger.info("copy_state replica=%s shard=%s state=%s before=%s", row.replica.name, row.shard[:8], new, old)
    return changed


def copy_refuse(copy: ReplicaCopy, *, reason: str, actor: str = TASK) -> None:
    """Note that a copy's node will not or may not keep it, and why; it is asked again, with growing pauses."""
    Replica.objects.filter(pk=copy.replica_id).update(last_error=reason[:500], last_error_at=timezone.now())
    copy_state_set(copy, CopyState.REFUSED, actor=actor, reason=reason[:500])


def alarm_raise(*, action: str, subject: str, detail: Mapping[str, Any], actor: str = TASK) -> None:
    """Write an event that a person should look at, unless the last one of that action and subject says the same."""
    last = ClusterEvent.objects.filter(action=action, subject=subject).first()
    if last is not None and last.alarm and last.after == dict(detail):
        return
    with transaction.atomic():
        epoch = Topology.objects.values_list("epoch", flat=True).first() or 0
        event_write(actor=actor, action=action, subject=subject, after=dict(detail), epoch=epoch, alarm=True)
        topology_changed()
    logger.error("alarm action=%s subject=%s detail=%s", action, subject, dict(detail))


def _concerns_others(state: CopyState) -> tuple[bool, bool]:
    """Return what of a state is in the placements for its node and its siblings to act on."""
    return state.is_readable, state is CopyState.QUARANTINED
