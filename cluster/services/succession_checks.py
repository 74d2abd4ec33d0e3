"""What a new coordinator asks of every shard before anything is read from it or written to it.

A registry that was taken over from placements (`cluster.services.succession`) may be older than what its former owner
did last. So each shard is told who the coordinator is now, after which it lets the former one change nothing any more,
and then says which slots it may write, by its gate. Of each slot:

- one shard may write it: that is the owner, whatever the table says. A target's gate is opened only behind everything
  that was moved, and the source's is closed before; so whoever is open has all rows.
- two may: a move had opened its target in vain and taken that back; the gate that was set last is right.
- none may: a move had closed it. The owner is who had it open last, and it is opened again. But only when all shards
  have been asked: one that is away may be the target that was opened since.

A shard is used as soon as all slots that the table gives it are open there. Afterwards every gate is set anew with an
epoch of this registry, and rows that moves have left behind where they do not belong are removed (`foreign_clean`).
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from django.conf import settings
from django.db import connection

from cluster.models import MoveStep, Shard, ShardedNamespace, Topology
from cluster.moves.ends import end_of
from cluster.services.changes import TASK, Unchanged, registry_change
from cluster.services.sharding_assignments import assignments_push
from cluster.services.sharding_gates import MOVES_LEASE, gates_settle
from cluster.services.succession import namespace_end_everywhere, namespaces_ended
from cluster.sharding.table import SlotTable
from cluster.states import MovePhase, ShardState
from vectors.engine.ids import SLOT_COUNT
from vectors.engine.namespace import NamespaceSpec
from vectors.engine.slots import ALL_SLOTS, NO_SLOTS, SlotSet
from vectors.errors import MLVectorDBError, Unavailable
from vectors.models import Namespace
from vectors.namespace_uids import is_later
from vectors.store.leases import take_lease
from vectors.store.slots import SlotsNow

logger = logging.getLogger(__name__)

_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Said:
    """What a shard has said: since when it may be written in which slots, and which namespaces it has."""

    changes: Sequence[SlotsNow]
    namespaces: Sequence[NamespaceSpec] = ()

    @property
    def epoch(self) -> int:
        """The epoch of its newest gate."""
        return self.changes[-1].epoch if self.changes else 0

    def writable(self, table: SlotTable, number: int) -> SlotSet:
        """The slots that it may write. One that was never told of any has nobody's but its own by the table."""
        return self.changes[-1].writable if self.changes else table.owned_by(number)

    @property
    def closed_at(self) -> np.ndarray:
        """For each slot the epoch at which the shard was last closed in it, 0 for never: (16384,) int64."""
        closed = np.zeros(SLOT_COUNT, dtype=np.int64)
        for before, after in zip(self.changes, self.changes[1:], strict=False):
            closed[(before.writable - after.writable).mask] = after.epoch
        return closed


@dataclass(frozen=True, slots=True)
class Verdict:
    """Who owns which slots by what the shards have said. `unsettled` are slots that nobody may write, for now."""

    table: SlotTable
    unsettled: SlotSet


def judged(table: SlotTable, said: Mapping[int, Said], *, is_complete: bool) -> Verdict:
    """Return who owns the slots. `said` is by number of the shard; `is_complete` says that all of them have. Pure."""
    owners = table.owners.astype(np.int64)
    best = np.full(SLOT_COUNT, -1, dtype=np.int64)
    for number, one in said.items():
        later = one.writable(table, number).mask & (one.epoch > best)
        owners[later], best[later] = number, one.epoch
    unsettled = best < 0
    if is_complete:
        last = np.zeros(SLOT_COUNT, dtype=np.int64)
        for number, one in said.items():
            closed_at = one.closed_at
            later = unsettled & (closed_at > last)
            owners[later], last[later] = number, closed_at[later]
        return Verdict(SlotTable(owners.astype("<u2")), NO_SLOTS)
    # What belongs to a shard that has not spoken is not in doubt: nobody else may write it, and it cannot be asked.
    spoken = np.isin(owners, list(said))
    return Verdict(SlotTable(owners.astype("<u2")), SlotSet.of_mask(unsettled & spoken))


def succession_go_on() -> None:
    """Ask the shards that have not spoken since this node became the coordinator; clean up when all have. By beat."""
    due = Shard.objects.filter(recheck_due=True)
    if due.exists():
        lease = take_lease(MOVES_LEASE, f"{socket.gethostname()}:{os.getpid()}:succession")
        if lease is None:
            return
        with lease:
            _check()
        gates_settle()
    if not due.exists():
        foreign_clean()


def _check() -> None:
    assignments_push()
    topology = Topology.objects.filter(is_owner=True, sharding_enabled=True).first()
    if topology is None:
        return
    shards = [shard for shard in Shard.objects.order_by("pk") if ShardState(shard.state).may_own]
    # One that has not taken this node's assignment may still be told other things by the former coordinator.
    asked = [shard for shard in shards if shard.is_local or shard.acknowledged_epoch]
    if not asked:
        return
    with ThreadPoolExecutor(min(_AT_ONCE, len(asked)), thread_name_prefix="recheck") as pool:
        answers = list(pool.map(_said, asked))
    said = {shard.pk: answer for shard, answer in zip(asked, answers, strict=True) if answer is not None}
    if said:
        _write(shards, said)


def _said(shard: Shard) -> Said | None:
    try:
        end = end_of(shard)
        changes = end.slot_changes()
        if shard.is_local:
            return Said(changes)
        return Said(changes, end.namespaces())
    except MLVectorDBError as error:
        logger.warning("shard_not_rechecked shard=%s error=%s", shard.label, error.message)
        return None
    finally:
        connection.close()


def _write(shards: Sequence[Shard], said: Mapping[int, Said]) -> None:
    """Write what the shards have said into the registry, and have the gates of those that are used from now on set."""
    with registry_change(actor=TASK, action="shards_rechecked", subject=settings.MLVDB_NODE_ID) as change:
        assert change.topology.slots is not None
        before = SlotTable.of_bytes(bytes(change.topology.slots))
        verdict = judged(before, said, is_complete=len(said) == len(shards))
        change.topology.slots = verdict.table.to_bytes()
        change.topology.save(update_fields=["slots"])
        settled = [number for number in said if not verdict.table.owned_by(number) & verdict.unsettled]
        changed = Shard.objects.filter(pk__in=settled, recheck_due=True).update(recheck_due=False, gate_due=True)
        moved = int((before.owners != verdict.table.owners).sum())
        if not changed and not moved:
            raise Unchanged
        change.epoch_raise(at_least=1 + max(one.epoch for one in said.values()))
        _namespaces_take([spec for one in said.values() for spec in one.namespaces])
        labels = {shard.pk: shard.label for shard in shards}
        change.after = {"shards": sorted(labels[number] for number in settled), "slots_of_others": moved}
    logger.info("shards_rechecked asked=%d of=%d settled=%d slots=%d", len(said), len(shards), len(settled), moved)


def _namespaces_take(specs: Sequence[NamespaceSpec]) -> None:
    """Take in the namespaces that a shard has and this registry does not know; end those that have ended."""
    rows = {row.uid: row for row in ShardedNamespace.objects.all()}
    by_name = {row.name: row for row in rows.values() if row.dropped_at is None}
    ended: set[str] = set()
    for spec in specs:
        if spec.uid in rows or spec.uid in ended:
            continue
        other = by_name.get(spec.name)
        if Namespace.objects.filter(uid=spec.uid, dropped_at__isnull=False).exists() or (
            other is not None and not is_later(spec.uid, other.uid)
        ):
            ended.add(spec.uid)
            continue
        if other is not None:
            # The registry had ended it before it made the newer one: this node had not heard of either.
            ShardedNamespace.objects.filter(pk=other.pk).delete()
            ended.add(other.uid)
        row = ShardedNamespace.objects.create(
            uid=spec.uid,
            name=spec.name,
            dimension=spec.dimension,
            metric=spec.metric,
            recall_target=spec.recall_target,
            picture=spec.picture,
        )
        rows[row.uid] = by_name[row.name] = row
    namespace_end_everywhere(namespaces_ended(ended))


def foreign_clean() -> None:
    """Remove the rows that shards of a registry which was taken over have of slots that they do not own.

    Under the lease of the moves, and not while one is under way: a move cleans up after itself.
    """
    marked = Shard.objects.filter(has_foreign=True, gate_due=False)
    if not marked.exists() or not Topology.objects.filter(is_owner=True, reign__gt=0).exists():
        return
    open_phases = [phase for phase in MovePhase if not phase.is_over]
    lease = take_lease(MOVES_LEASE, f"{socket.gethostname()}:{os.getpid()}:cleaning")
    if lease is None:
        return
    with lease:
        if MoveStep.objects.filter(phase__in=open_phases).exists():
            return
        for shard in marked:
            try:
                _clean(shard)
            except MLVectorDBError as error:
                logger.warning("shard_not_cleaned shard=%s error=%s", shard.label, error.message)


def _clean(shard: Shard) -> None:
    end = end_of(shard)
    changes = end.slot_changes()
    if changes:
        foreign = ALL_SLOTS - changes[-1].writable
        if foreign:
            end.clean(foreign, epoch=changes[-1].epoch)
            # A copy that takes the node's place must not have them still when nobody masks them any more.
            if not end.wait_quorum(end.position(), timeout_s=settings.MLVDB_PEER_TIMEOUT_S):
                raise Unavailable("not enough copies of the shard have let go of the rows of others")
    with registry_change(actor=TASK, action="shard_cleaned", subject=shard.label) as change:
        if not Shard.objects.filter(pk=shard.pk, has_foreign=True).update(has_foreign=False):
            raise Unchanged
        change.epoch_raise()
