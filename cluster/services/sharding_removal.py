"""Removing a shard: at once when it has nothing, else after a move that takes its slots to the others.

Steps for a shard with slots:
1. its node must answer, or nothing could be moved away: else it is refused with the number of rows that are there;
2. it is DRAINING, and a move is asked for; plans give it nothing from here on;
3. when it has no slots left (`drained_settle`, by the end of the move and by beat), it is REMOVED;
4. its node is told that it is no shard any more, or its copy on this node goes.
Forced, for a node that does not come back: its slots go to the other shards by weight in one transaction, with an alarm
that says how many rows are lost; what a running move had copied of them already stays where it is. A crash after any
step leaves what beat completes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from django.conf import settings
from django.db.models import Q
from django.utils import timezone

from cluster.models import Move, MoveStep, NamespaceErrand, Replica, ReplicaCopy, Shard, Topology
from cluster.moves.control import drain_now
from cluster.services.candidates import OtherNode, ask_status, words_of
from cluster.services.changes import TASK, Change, Unchanged, registry_change
from cluster.services.sharding_assignments import assignments_push
from cluster.services.sharding_gates import gates_settle
from cluster.services.sharding_rows import LastShard, ShardUnreachable, check_coordinator, shard_of
from cluster.sharding.plan import shares
from cluster.sharding.table import SlotTable
from cluster.states import OPEN_PHASES, SHARD_TRANSITIONS, MovePhase, ShardState, allowed
from vectors.engine.slots import SlotSet
from vectors.errors import MLVectorDBError
from vectors.models import ShardHead

logger = logging.getLogger(__name__)


def shard_remove(*, label: str, force: bool = False, actor: str) -> Move | None:
    """Remove a shard; return the move that drains it first, None when it is gone already.

    Raise ShardNotFound, LastShard when no other shard could take its slots, and ShardUnreachable when its node does not
    answer and has rows; the last one not with `force`, which then gives them up.
    """
    check_coordinator()
    shard = shard_of(label)
    _check_not_last(shard)
    if shard.state == ShardState.DRAINING and not force:
        return drain_now(shard, actor=actor)
    if _has_nothing(shard):
        if _remove(shard, actor):
            removed_settle(urls=[shard.url])
            return None
        shard.refresh_from_db()
    why = _why_unreachable(shard)
    if why:
        if not force:
            raise ShardUnreachable(
                f"the shard {label} has {shard.rows} rows, as far as is known, and its node does not answer ({why}); "
                "force=true removes it all the same, and they are lost",
                field="shard_id",
                detail={"rows": shard.rows, "error": why},
            )
        _remove_by_force(shard, actor, why)
        gates_settle()
        removed_settle(urls=[shard.url])
        return None
    with registry_change(actor=actor, action="shard_draining", subject=label) as change:
        _check_not_last(shard)
        if not Shard.objects.filter(pk=shard.pk, state=ShardState.ACTIVE).update(
            state=ShardState.DRAINING, fill_due=False
        ):
            raise Unchanged
        change.before, change.after = {"state": shard.state}, {"state": ShardState.DRAINING.value}
        change.epoch_raise()
    shard.refresh_from_db()
    return drain_now(shard, actor=actor)


def shard_stay(shard: Shard, *, actor: str = TASK) -> bool:
    """Keep a shard whose draining was cancelled, with the slots it still has; return whether it is kept by this."""
    kept = False
    with registry_change(actor=actor, action="shard_stays", subject=shard.label) as change:
        kept = bool(Shard.objects.filter(pk=shard.pk, state=ShardState.DRAINING).update(state=ShardState.ACTIVE))
        if not kept:
            raise Unchanged
        change.epoch_raise()
    return kept


def drained_settle() -> list[str]:
    """Remove the shards that were drained and have nothing left; return their labels. By a move's end, and by beat.

    A drained shard whose move was never asked for, because of a crash, gets it now.
    """
    removed = []
    for shard in Shard.objects.filter(state=ShardState.DRAINING):
        if _has_nothing(shard):
            if _remove(shard, TASK):
                removed.append(shard)
        elif _slots(shard) and not Move.objects.filter(kind=Move.Kind.DRAIN, ended_at__isnull=True).exists():
            drain_now(shard)
    if removed:
        removed_settle(urls=[shard.url for shard in removed])
    return [shard.label for shard in removed]


def removed_settle(*, urls: Sequence[str] | None = None) -> None:
    """Let go of what removed shards have left: tell their nodes, and drop their copies on this node."""
    for shard in Shard.objects.filter(state=ShardState.REMOVED, released=False, url=""):
        try:
            if ShardHead.objects.filter(uid=shard.uid).exists():
                from vectors.store.copies import shard_drop

                shard_drop(shard.uid)
        except MLVectorDBError as error:
            logger.warning("copy_not_dropped shard=%s error=%s", shard.label, error.message)
            continue
        Shard.objects.filter(pk=shard.pk).update(released=True)
    remote = Shard.objects.filter(state=ShardState.REMOVED, released=False).exclude(url="")
    if urls is not None:
        assignments_push(urls=remote.filter(url__in=urls).values_list("url", flat=True))


def _check_not_last(shard: Shard) -> None:
    others = [other for other in Shard.objects.exclude(pk=shard.pk) if ShardState(other.state).is_target]
    if not others and (_slots(shard) or ShardState(shard.state).may_own):
        raise LastShard(f"{shard.label} is the last shard: add another one first", field="shard_id")
    local = [other for other in Shard.objects.filter(url="").exclude(pk=shard.pk) if ShardState(other.state).is_target]
    if shard.is_local and not local and Replica.objects.filter(shard="").exists():
        # What a replica of all shards knows of them, it is told with the placements of this node's own.
        raise LastShard(
            f"{shard.label} is the last shard on this node, which has replicas of all shards: remove these first",
            field="shard_id",
        )


def _slots(shard: Shard) -> SlotSet:
    topology = Topology.objects.get()
    assert topology.slots is not None
    return SlotTable.of_bytes(bytes(topology.slots)).owned_by(shard.pk)


def _steps(shard: Shard) -> Any:
    return MoveStep.objects.filter(Q(source=shard) | Q(target=shard), phase__in=OPEN_PHASES)


def _has_nothing(shard: Shard) -> bool:
    """Whether a shard owns no slot, nothing is under way to or from it, and it has no rows that others own."""
    return not _slots(shard) and not shard.has_foreign and not _steps(shard).exists()


def _why_unreachable(shard: Shard) -> str:
    """Return why nothing can be moved away from a shard now; empty when its node answers as the one it was."""
    if shard.is_local:
        return "" if ShardHead.objects.filter(uid=shard.uid).exists() else "its copy is not on this node"
    try:
        status = ask_status(shard.url, timeout_s=settings.MLVDB_PROBE_TIMEOUT_S, even_if_silent=True, field="shard_url")
        if shard.node and status["node"] != shard.node:
            raise OtherNode(f"{shard.url} answers as another node than the shard's")
    except MLVectorDBError as error:
        return words_of(error)
    held = [held for held in status.get("shards", ()) if isinstance(held, dict) and held.get("uid") == shard.uid]
    return "" if held else "its copy is not on that node any more"


def _remove(shard: Shard, actor: str) -> bool:
    """Remove a shard that has nothing; False when it turned out to have something."""
    removed = False
    with registry_change(actor=actor, action="shard_removed", subject=shard.label) as change:
        row = Shard.objects.get(pk=shard.pk)
        if not allowed(SHARD_TRANSITIONS, ShardState(row.state), ShardState.REMOVED) or not _has_nothing(row):
            raise Unchanged
        _check_not_last(row)
        _let_go(change, row)
        change.before = {"url": row.url, "node": row.node, "state": shard.state}
        removed = True
    if removed:
        logger.info("shard_removed shard=%s", shard.label)
    return removed


def _remove_by_force(shard: Shard, actor: str, why: str) -> None:
    with registry_change(actor=actor, action="shard_removed", subject=shard.label) as change:
        row = Shard.objects.get(pk=shard.pk)
        if row.state == ShardState.REMOVED:
            raise Unchanged
        _check_not_last(row)
        given = _give_slots(change, row)
        _end_steps(row)
        _let_go(change, row)
        change.before = {"url": row.url, "node": row.node, "state": shard.state, "rows": row.rows}
        change.after = {"forced": True, "why": why, "rows_lost": row.rows, "slots": given}
        change.alarm = True
    logger.error("shard_lost shard=%s rows=%d why=%s", shard.label, shard.rows, why)


def _let_go(change: Change, row: Shard) -> None:
    """Make a shard REMOVED: its replicas' copies on this node's account are detached, errands to it void."""
    row.state, row.has_foreign, row.fill_due, row.gate_due = ShardState.REMOVED, False, False, False
    row.released = row.recheck_due = False
    row.save(update_fields=["state", "has_foreign", "fill_due", "gate_due", "recheck_due", "released"])
    NamespaceErrand.objects.filter(shard=row).delete()
    change.epoch_raise()
    if row.is_local:
        for copy in ReplicaCopy.objects.filter(shard=row.uid).select_related("replica"):
            change.drop(copy)


def _give_slots(change: Change, lost: Shard) -> Mapping[str, int]:
    """Give the slots of a lost shard to the others by weight; return how many each got.

    What was on its way to a shard goes to that one: some of its rows are there.
    """
    topology = change.topology
    assert topology.slots is not None
    table = SlotTable.of_bytes(bytes(topology.slots))
    left = table.owned_by(lost.pk)
    targets = {other.pk: other for other in Shard.objects.exclude(pk=lost.pk) if ShardState(other.state).is_target}
    given: dict[int, SlotSet] = {}
    for step in _steps(lost).filter(source=lost, target__in=targets):
        some = SlotSet(bytes(step.slots)) & left
        given[step.target_id] = given[step.target_id] | some if step.target_id in given else some
        left = left - some
    numbers = left.numbers
    counts = shares(len(numbers), {number: target.weight for number, target in targets.items()})
    ends = np.cumsum([counts[number] for number in sorted(targets)])
    for number, share in zip(sorted(targets), np.split(numbers, ends[:-1]), strict=True):
        more = SlotSet.of(share)
        given[number] = given[number] | more if number in given else more
    for number, slots in given.items():
        if slots:
            table = table.moved(slots, source=lost.pk, target=number)
            Shard.objects.filter(pk=number).update(gate_due=True)
    change.epoch_raise()
    topology.slots = table.to_bytes()
    topology.save(update_fields=["slots"])
    return {targets[number].label: len(slots) for number, slots in given.items()}


def _end_steps(lost: Shard) -> None:
    """End what is on its way to or from a lost shard; a source that was being closed is to be opened again.

    What the other shard has of rows that it does not own goes first: a step that was begun is left to the run of its
    move, which ends it as failed, or as done where the slots had changed their owner already.
    """
    error = f"the shard {lost.label} was removed by force"
    for step in _steps(lost):
        phase = MovePhase(step.phase)
        row = MoveStep.objects.filter(pk=step.pk)
        if step.target_id == lost.pk and phase is MovePhase.CLEANING:
            continue
        if phase is MovePhase.PLANNED:
            row.update(phase=MovePhase.FAILED, error=error)
        else:
            row.update(phase=MovePhase.UNDOING, state={**step.state, "lost": True}, error=error, attempts=0)
            Shard.objects.filter(pk=step.source_id).exclude(pk=lost.pk).update(gate_due=True)
    drains = Move.objects.filter(kind=Move.Kind.DRAIN, shard=lost.uid, ended_at__isnull=True)
    drains.exclude(pk__in=_steps(lost).values("move")).update(
        phase=MovePhase.FAILED, error="the shard was removed by force", ended_at=timezone.now()
    )
