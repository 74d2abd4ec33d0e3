"""The outbox of placements: sent to all nodes at once after a change, and again by beat until each has acknowledged.

A push goes through three steps that never mix: what to send is read; it is sent, by threads that touch no row; what the
nodes answered is written. So no transaction is open while a peer is waited for, and a silent one costs its own short
timeout, not the others'. A node that is asked to join is looked at first (`cluster.services.candidates`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db.models import F, Q, QuerySet
from django.utils import timezone

from cluster.models import PlacementPush, Replica, ReplicaCopy, Topology
from cluster.replication.knocks import knock
from cluster.replication.placements import DETACHED
from cluster.services.candidates import Host, ask_status, check_candidate, host_now, words_of
from cluster.services.changes import TASK, registry_change
from cluster.services.copies import alarm_raise, copy_refuse, copy_state_set
from cluster.services.membership import membership_settle
from cluster.services.sending import sent_at_once
from cluster.services.sweeps import Sweeps
from cluster.states import CopyState
from cluster.transport.client import peer_client
from cluster.transport.errors import PeerRejected
from vectors.errors import MLVectorDBError, NotFound
from vectors.models import ShardHead
from vectors.store import terms

logger = logging.getLogger(__name__)

PLACEMENT_PATH = "/cluster/node/placement"

#: Answers that only a person, or a changed node, can turn into another one.
REFUSALS = frozenset(
    {"not_empty", "wrong_cluster", "incompatible", "cycle", "own_url", "not_a_node", "other_node", "already_replica"}
)

#: Answers of a node that knows a newer placement or term.
OUTRUN = frozenset({"stale_epoch", "stale_term"})


@dataclass(frozen=True, slots=True)
class _Errand:
    """One placement to bring to one node, with all that the sending thread needs to know."""

    push_id: int
    url: str
    shard: str
    epoch: int
    document: Mapping[str, Any]
    is_detached: bool
    joins: bool
    node: str
    name: str
    host: Host


def placements_push(*, urls: Iterable[str] | None = None, timeout_s: float | None = None) -> None:
    """Send every placement that was not acknowledged (to `urls` only), all at once; wait for `timeout_s` at most.

    Called after the commit of a change. A node that does not answer gets its placement later, by beat. Never raises for
    what a peer does.
    """
    pushes = PlacementPush.objects.filter(acknowledged_epoch__lt=F("epoch"))
    if urls is not None:
        pushes = pushes.filter(url__in=set(urls))
    _send_all(_errands(pushes), timeout_s or settings.MLVDB_PROBE_TIMEOUT_S)


def placements_push_pending() -> None:
    """Send again what was not acknowledged, more and more seldom to a node that does not take it. By beat."""
    _sweeps.next()
    waiting = PlacementPush.objects.filter(acknowledged_epoch__lt=F("epoch"))
    due = [push.pk for push in waiting.only("pk", "attempts") if _sweeps.is_due(push.attempts)]
    if due:
        _send_all(_errands(waiting.filter(pk__in=due)), settings.MLVDB_PEER_TIMEOUT_S)


def placement_push_now(*, url: str, shard: str, timeout_s: float | None = None) -> None:
    """Bring the present placement of one shard to one node, acknowledged before or not, and wait for it.

    Raise what the node, or the way to it, has against it: the errors of `cluster.transport` and `candidates`.
    """
    errands = _errands(PlacementPush.objects.filter(url=url, shard=shard))
    if not errands:
        raise NotFound(f"no placement is meant for {url}")
    answer = _sent(errands[0], timeout_s or settings.MLVDB_PEER_TIMEOUT_S, even_if_silent=True)
    _note(errands[0], answer)
    if isinstance(answer, Exception):
        raise answer


_sweeps = Sweeps()


# -- what to send ------------------------------------------------------------------------------------------------


def _errands(pushes: QuerySet[PlacementPush]) -> list[_Errand]:
    rows = list(pushes)
    if not rows:
        return []
    topology = Topology.objects.filter(is_owner=True).first()
    if topology is None:
        # Another node keeps the registry by now: what lies in the outbox is void.
        return []
    host = host_now(topology.cluster)
    copies = {
        (copy.replica.url, copy.shard): copy
        for copy in ReplicaCopy.objects.filter(replica__url__in={row.url for row in rows}).select_related("replica")
    }
    errands = []
    for row in rows:
        copy = copies.get((row.url, row.shard))
        is_detached = row.document["role"] == DETACHED
        if copy is None and not is_detached:
            # The copy was removed between the two reads, and this row with it or replaced.
            PlacementPush.objects.filter(pk=row.pk, epoch=row.epoch).delete()
            continue
        errands.append(
            _Errand(
                push_id=row.pk,
                url=row.url,
                shard=row.shard,
                epoch=row.epoch,
                document=row.document,
                is_detached=is_detached,
                joins=copy is not None and not is_detached and CopyState(copy.state).needs_placement,
                node=copy.replica.node if copy is not None else row.document["node"],
                name=row.document["name"],
                host=host,
            )
        )
    return errands


# -- sending: no rows here ---------------------------------------------------------------------------------------

_Answer = dict[str, Any] | MLVectorDBError


def _send_all(errands: Sequence[_Errand], timeout_s: float) -> None:
    # A join takes two calls.
    sent = sent_at_once(
        errands, lambda errand: _sent(errand, timeout_s), within_s=2 * timeout_s + 1.0, thread_name="placement"
    )
    for errand, answer in sent:
        try:
            _note(errand, answer)
        except MLVectorDBError as error:
            logger.warning("push_not_noted url=%s error=%s", errand.url, error.message)


def _sent(errand: _Errand, timeout_s: float, *, even_if_silent: bool = False) -> _Answer:
    try:
        if errand.joins:
            status = ask_status(errand.url, timeout_s=timeout_s, even_if_silent=even_if_silent)
            check_candidate(errand.host, errand.url, status, name=errand.name, expected_node=errand.node)
        return peer_client().json(
            errand.url,
            "PUT",
            PLACEMENT_PATH,
            json=errand.document,
            timeout_s=timeout_s,
            even_if_silent=even_if_silent,
        )
    except MLVectorDBError as error:
        return error


# -- what they answered ------------------------------------------------------------------------------------------


def _note(errand: _Errand, answer: _Answer) -> None:
    if isinstance(answer, MLVectorDBError):
        _note_failure(errand, answer)
    else:
        _note_acknowledged(errand, answer)


def _note_acknowledged(errand: _Errand, status: Mapping[str, Any]) -> None:
    PlacementPush.objects.filter(pk=errand.push_id, acknowledged_epoch__lt=errand.epoch).update(
        acknowledged_epoch=errand.epoch, last_error="", attempts=0, updated_at=timezone.now()
    )
    logger.info("placement_acknowledged url=%s shard=%s epoch=%d", errand.url, errand.shard[:8], errand.epoch)
    copy = _copy_of(errand)
    if errand.is_detached or copy is None:
        if errand.is_detached:
            PlacementPush.objects.filter(pk=errand.push_id, epoch=errand.epoch).delete()
        return
    _note_node(copy.replica, status)
    if CopyState(copy.state).needs_placement and copy_state_set(copy, CopyState.SYNCING):
        knock(errand.shard)
    _note_position(copy, status)
    membership_settle(errand.shard)


def _note_node(replica: Replica, status: Mapping[str, Any]) -> None:
    """Remember which node answers at the replica's URL; every later one must be the same."""
    node, version = str(status.get("node") or ""), str(status.get("version") or "")[:32]
    if replica.node or not node:
        return
    with registry_change(actor=TASK, action="replica_found", subject=replica.name) as change:
        Replica.objects.filter(pk=replica.pk, node="").update(node=node, version=version, last_error="")
        change.after = {"node": node, "version": version}
        change.epoch_raise()


def _note_position(copy: ReplicaCopy, status: Mapping[str, Any]) -> None:
    for shard in status.get("shards") or ():
        if isinstance(shard, dict) and shard.get("uid") == copy.shard:
            term, seq = _whole(shard.get("term")), _whole(shard.get("seq"))
            newer = Q(term__lt=term) | Q(term=term, seq__lt=seq)
            ReplicaCopy.objects.filter(newer, pk=copy.pk).update(term=term, seq=seq)


def _note_failure(errand: _Errand, error: MLVectorDBError) -> None:
    if not PlacementPush.objects.filter(pk=errand.push_id, epoch=errand.epoch).exists():
        # Overtaken: a newer one is on its way, or there already, which is why this one was refused.
        return
    words = words_of(error)
    code = error.peer_code if isinstance(error, PeerRejected) else error.code
    is_news = not PlacementPush.objects.filter(pk=errand.push_id, last_error=words).exists()
    PlacementPush.objects.filter(pk=errand.push_id).update(
        attempts=F("attempts") + 1, last_error=words, updated_at=timezone.now()
    )
    level = logging.WARNING if is_news else logging.DEBUG
    logger.log(level, "placement_not_taken url=%s shard=%s error=%s", errand.url, errand.shard[:8], words)
    if errand.is_detached:
        if code in REFUSALS | OUTRUN:
            # Whatever is there now has nothing to do with this cluster any more.
            PlacementPush.objects.filter(pk=errand.push_id, epoch=errand.epoch).delete()
        return
    copy = _copy_of(errand)
    if copy is None:
        return
    Replica.objects.filter(pk=copy.replica_id).update(last_error=words, last_error_at=timezone.now())
    if code in REFUSALS:
        copy_refuse(copy, reason=words)
    elif code in OUTRUN and isinstance(error, PeerRejected):
        _note_outrun(errand, error)


def _note_outrun(errand: _Errand, error: PeerRejected) -> None:
    """A node knows a newer placement or term. Of an older term it is this registry's business to outrun it; of a newer
    one, another node has been made the primary: this one stops taking writes.
    """
    heard = max(_whole(error.peer_detail.get("term")), _whole(error.peer_detail.get("promised_term")))
    head = ShardHead.objects.filter(uid=errand.shard).first()
    if head is not None and heard > head.term:
        terms.term_heard(head.pk, heard)
        alarm_raise(action="deposed", subject=errand.url, detail={"message": error.message, "promised_term": heard})
        return
    known = _whole(error.peer_detail.get("epoch"))
    topology = Topology.objects.first()
    if topology is not None and known >= topology.epoch:
        with registry_change(actor=TASK, action="epoch_outrun", subject=errand.url) as change:
            change.before = {"epoch": change.topology.epoch}
            change.after = {"epoch": change.epoch_raise(at_least=known + 1)}


def _whole(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 2**63 else 0


def _copy_of(errand: _Errand) -> ReplicaCopy | None:
    rows = ReplicaCopy.objects.filter(replica__url=errand.url, shard=errand.shard)
    return rows.select_related("replica").first()
