"""Storage engines of a program as its shards: entered into the registry, and out of it when they are no more.

A program is one node, so it has one set of shards, whatever managers come and go. Engines that are shards stay so when
their manager is shut down; another manager of one of them goes on with all of them. A manager of none of them begins
anew: the former ones are engines of their own again, and remote shards are told that they are nobody's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from django.utils import timezone

from cluster.library.preparation import ACTOR
from cluster.models import SLOT_KINDS, Move, NamespaceErrand, Shard, ShardedNamespace, Topology
from cluster.moves.control import fill_now
from cluster.services.changes import Unchanged, registry_change
from cluster.services.sharding import sharding_enable
from cluster.services.sharding_assignments import assignments_push
from cluster.services.sharding_gates import gate_write
from cluster.services.sharding_rows import RESERVED_LABELS, ShardExists, check_same_strategy, check_weight
from cluster.states import MovePhase, ShardState
from vectors.engine.slots import ALL_SLOTS, NO_SLOTS
from vectors.errors import Conflict, NotEmpty
from vectors.models import ShardHead
from vectors.names import checked_name
from vectors.store.copies import copy_contents, copy_is_empty

if TYPE_CHECKING:
    from vectors.library import StorageEngineInMemory


def engines_enter(engines: Mapping[str, StorageEngineInMemory], *, strategy: str) -> None:
    """Make these engines the program's shards by their labels, or go on with them.

    One of them may have rows, which are spread over all of them in the background. Raise NotEmpty when a second one
    has, StrategyFixed for another strategy than the shards have, ShardExists for another label than an engine has.
    """
    for label in engines:
        checked_name(label, field="shard_id", reserved=RESERVED_LABELS)
    _leave_former({engine.shard_uid for engine in engines.values()})
    if _shards():
        check_same_strategy(Topology.objects.get(), strategy)
        for label, engine in engines.items():
            engine_enter(label, engine)
        return
    with_rows = [label for label, engine in engines.items() if not copy_is_empty(engine.shard_id)]
    for label in with_rows[1:]:
        _check_empty(label, engines[label])
    _free_labels(engines)
    copies = {label: engine.shard_uid for label, engine in engines.items()}
    sharding_enable(strategy=strategy, shards=len(copies), copies=copies, actor=ACTOR)


def engine_enter(label: str, storage: StorageEngineInMemory, *, weight: float = 1.0) -> bool:
    """Make one more engine a shard, which gets its share in the background; return whether it was none.

    Raise ShardExists and NotEmpty.
    """
    checked_name(label, field="shard_id", reserved=RESERVED_LABELS)
    check_weight(weight)
    if _is_known(label, storage):
        return False
    _check_empty(label, storage)
    _free_labels({label: storage})
    with registry_change(actor=ACTOR, action="shard_added", subject=label) as change:
        if _is_known(label, storage):
            raise Unchanged
        ShardHead.objects.filter(pk=storage.shard_id).update(label=label)
        # Until a move opens some, none of its slots may be written.
        head = ShardHead.objects.get(pk=storage.shard_id)
        gate_write(head, epoch=change.epoch_raise(), writable=NO_SLOTS)
        Shard.objects.create(label=label, uid=head.uid, weight=weight, state=ShardState.ACTIVE, fill_due=True)
        change.after = {"weight": weight}
    fill_now(actor=ACTOR)
    return True


def _leave_former(uids: Collection[str]) -> None:
    """End the shards of before when none of the engines that are wanted now is one of them.

    Raise Conflict when some are, and others were closed: the rows that these had are nowhere any more.
    """
    former = _shards()
    local = [shard for shard in former if shard.is_local]
    open_uids = set(ShardHead.objects.filter(uid__in=[shard.uid for shard in local]).values_list("uid", flat=True))
    if any(shard.uid in uids for shard in local):
        for shard in local:
            if shard.uid not in open_uids:
                raise Conflict(
                    f"the storage engine of shard {shard.label} was closed, which dropped its vectors: begin anew with "
                    "other engines",
                    field="shard_storages",
                )
        return
    if not former:
        return
    with registry_change(actor=ACTOR, action="sharding_ended", subject="shards of a program") as change:
        change.before = {"shards": [shard.label for shard in former]}
        Move.objects.filter(kind__in=SLOT_KINDS, ended_at__isnull=True).update(
            phase=MovePhase.CANCELLED, error="the program's shards are no more", ended_at=timezone.now()
        )
        Shard.objects.filter(pk__in=[shard.pk for shard in local]).delete()
        remote = Shard.objects.filter(pk__in=[shard.pk for shard in former])
        remote.update(state=ShardState.REMOVED, attempts=0, acknowledged_epoch=0)
        NamespaceErrand.objects.all().delete()
        ShardedNamespace.objects.all().delete()
        row = change.topology
        row.sharding_enabled, row.strategy, row.slots = False, "", None
        row.save(update_fields=["sharding_enabled", "strategy", "slots"])
        epoch = change.epoch_raise()
        for head in ShardHead.objects.filter(uid__in=open_uids):
            gate_write(head, epoch=epoch, writable=ALL_SLOTS)
    assignments_push(urls=[shard.url for shard in former if not shard.is_local])


def _free_labels(engines: Mapping[str, StorageEngineInMemory]) -> None:
    """Give other labels to copies that have these and are no shards: the program's own first one, former shards."""
    own = {engine.shard_uid for engine in engines.values()}
    for head in ShardHead.objects.filter(label__in=list(engines)).exclude(uid__in=own):
        ShardHead.objects.filter(pk=head.pk).update(label=f"storage_{head.uid[:12]}")


def _shards() -> list[Shard]:
    return [shard for shard in Shard.objects.all() if ShardState(shard.state).is_shard]


def _is_known(label: str, storage: StorageEngineInMemory) -> bool:
    for shard in _shards():
        if shard.label == label and shard.uid == storage.shard_uid:
            return True
        if shard.label == label:
            raise ShardExists(f"there is a shard {label} already", field="shard_id")
        if shard.uid == storage.shard_uid:
            raise ShardExists(f"this storage engine is the shard {shard.label}", field="shard_id")
    return False


def _check_empty(label: str, storage: StorageEngineInMemory) -> None:
    if copy_is_empty(storage.shard_id):
        return
    contents = copy_contents(storage.shard_id)
    raise NotEmpty(
        f"the storage engine that is to be shard {label} has {len(contents.namespaces)} namespaces with at most"
        f" {contents.rows} rows: of a program's first shards one may have rows, later ones none",
        field="shard_id",
        detail={"rows": contents.rows, "namespaces": contents.namespaces[:20]},
    )
