"""Which slots a shard may write, where they change owner without a move: as shards are made, and after a loss.

A move opens and closes slots at its two ends itself. What is left is done here: the gates of this node's own copies in
the transaction that divides an empty id space, and afterwards, until they have heard it, those of the shards that a
forced removal has given slots to.
"""

from __future__ import annotations

import logging
import os
import socket

from cluster.models import MoveStep, Shard, Topology
from cluster.moves.ends import end_of
from cluster.sharding.table import SlotTable
from cluster.states import CLOSED_PHASES, ShardState
from vectors.engine.slots import ALL_SLOTS, SlotSet
from vectors.errors import MLVectorDBError
from vectors.models import ShardHead
from vectors.store import log
from vectors.store.leases import take_lease

logger = logging.getLogger(__name__)

MOVES_LEASE = "moves"


def gate_write(head: ShardHead, *, epoch: int, writable: SlotSet) -> None:
    """Let a copy of this node be written in some slots only, within the transaction of a change of the registry.

    A copy that may be written in all slots, and never was told of any, needs no gate.
    """
    if writable == ALL_SLOTS and not head.slots_seq:
        return
    with log.append_inside(head.pk) as open_log:
        open_log.set_slots(epoch, writable)


def gates_settle() -> int:
    """Open what forced removals have given to shards and they were not told of yet; return how many still wait.

    Under the lease of the moves, which set the same gates: while one runs, it is this that waits. Of a shard that a new
    coordinator has yet to ask, the registry may say what is not so any more: it gets its gate when it has spoken.
    """
    due = Shard.objects.filter(gate_due=True, recheck_due=False)
    if not due.exists():
        return 0
    lease = take_lease(MOVES_LEASE, f"{socket.gethostname()}:{os.getpid()}:gates")
    if lease is None:
        return due.count()
    with lease:
        waiting = 0
        for shard in due:
            lease.check()
            if not ShardState(shard.state).may_own:
                Shard.objects.filter(pk=shard.pk).update(gate_due=False)
            elif not _open(shard):
                waiting += 1
    return waiting


def writable_of(shard: Shard, topology: Topology) -> SlotSet:
    """Return the slots that a shard is to be writable in by the registry: its own but those being closed by a move."""
    assert topology.slots is not None
    writable = SlotTable.of_bytes(bytes(topology.slots)).owned_by(shard.pk)
    leaving = MoveStep.objects.filter(source=shard, phase__in=CLOSED_PHASES)
    for slots in leaving.values_list("slots", flat=True):
        writable = writable - SlotSet(bytes(slots))
    return writable


def _open(shard: Shard) -> bool:
    topology = Topology.objects.get()
    try:
        end_of(shard).set_slots(topology.epoch, writable_of(shard, topology))
    except MLVectorDBError as error:
        logger.warning("gate_not_opened shard=%s error=%s", shard.label, error.message)
        return False
    # One that lost another shard meanwhile is told again: the epoch was raised with the mark.
    epoch_is_the_same = Topology.objects.filter(epoch=topology.epoch).exists()
    return epoch_is_the_same and bool(Shard.objects.filter(pk=shard.pk, gate_due=True).update(gate_due=False))
