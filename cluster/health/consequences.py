"""What a probe's answer gives cause for, besides being a sample of health.

- A node that answers as another one, or is in another cluster or of another protocol: its copies are refused.
- A copy that says it is damaged: it is quarantined, which has it refilled by a full sync.
- A copy that has promised a newer term than this primary's: this primary stops taking writes.
"""

from __future__ import annotations

import logging

from cluster.health.probe import NodeStatus, Probe, Question
from cluster.models import Replica, ReplicaCopy
from cluster.services.copies import copy_refuse, copy_state_set
from cluster.states import CopyState
from vectors.models import ShardHead
from vectors.store import terms

logger = logging.getLogger(__name__)

#: What a person, or a changed node, must put right.
REFUSING = frozenset({"own_url", "other_node", "incompatible", "wrong_cluster", "not_empty", "cycle"})


def heed(replica: Replica, probe: Probe, question: Question) -> None:
    """Act on what a probe of a replica has brought; in the usual case there is nothing to do, and it costs no query."""
    if probe.code in REFUSING:
        _refuse(replica, probe)
    status = probe.status
    if not probe.ok or status is None:
        return
    if status.version != replica.version:
        replica.version = status.version[:32]
        Replica.objects.filter(pk=replica.pk).update(version=replica.version)
    for uid, (term, _) in question.heads.items():
        shard = status.shards.get(uid)
        if shard is not None and shard.promised_term > term:
            _hear_term(uid, shard.promised_term, replica)
    if any(shard.damage for shard in status.shards.values()):
        _quarantine_damaged(replica, status)


def _refuse(replica: Replica, probe: Probe) -> None:
    for copy in ReplicaCopy.objects.filter(replica=replica).exclude(state=CopyState.REFUSED):
        copy_refuse(copy, reason=f"{probe.code}: {probe.error}")


def _hear_term(uid: str, term: int, replica: Replica) -> None:
    head = ShardHead.objects.filter(uid=uid, is_primary=True, promised_term__lt=term).first()
    if head is not None:
        logger.warning("newer_term_heard replica=%s shard=%s term=%d", replica.name, head.label, term)
        terms.term_heard(head.pk, term)


def _quarantine_damaged(replica: Replica, status: NodeStatus) -> None:
    for copy in ReplicaCopy.objects.filter(replica=replica, state__in=(CopyState.FOLLOWING, CopyState.SYNCING)):
        shard = status.shards.get(copy.shard)
        if shard is not None and shard.damage:
            logger.warning("damaged_copy replica=%s shard=%s", replica.name, copy.shard[:8])
            copy_state_set(copy, CopyState.QUARANTINED)
