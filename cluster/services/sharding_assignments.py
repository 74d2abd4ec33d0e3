"""Assignments on their way to the nodes of remote shards: sent after a change, and by beat until each has taken it.

There is no outbox: what a node is to be told is read from the registry, as of its epoch, whenever it is sent, and a
shard's row says which epoch its node has acknowledged. As with placements, what to send is read, then sent by threads
that touch no row, then the answers are written. A node that is asked to join is looked at first.

What an assignment says is not what keeps a row from being written twice: that are the gates that a move sets. So it may
be late, and nobody who changes the registry waits for it, but for the one who adds or removes that very shard.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db.models import F
from django.utils import timezone

from cluster.models import Shard, Topology
from cluster.node_urls import own_url
from cluster.replication.knocks import failover_knock
from cluster.services.candidates import ask_status, words_of
from cluster.services.changes import TASK, Unchanged, registry_change
from cluster.services.copies import alarm_raise
from cluster.services.placements import REFUSALS
from cluster.services.sending import sent_at_once
from cluster.services.sharding_candidates import Coordinator, check_shard_candidate, coordinator_now
from cluster.services.sweeps import Sweeps
from cluster.sharding.assignment import AssignmentDocument
from cluster.sharding.table import SlotTable
from cluster.states import SHARD_TRANSITIONS, ShardState, allowed
from cluster.transport.client import peer_client
from cluster.transport.errors import PeerRejected
from mlvdb_site.celery import publish
from vectors.engine.slots import NO_SLOTS
from vectors.errors import MLVectorDBError

logger = logging.getLogger(__name__)

ASSIGNMENT_PATH = "/cluster/node/assignment"
PUSH_TASK = "cluster.tasks.assignments_push"

#: Answers that only a person, or a changed node, can turn into another one.
SHARD_REFUSALS = REFUSALS | {"already_shard", "not_primary", "shard_lost"}


@dataclass(frozen=True, slots=True)
class _Errand:
    """One assignment to bring to one node, with all that the sending thread needs to know."""

    shard_id: int
    url: str
    document: AssignmentDocument
    asks: Coordinator


def assignments_push(*, urls: Iterable[str] | None = None, timeout_s: float | None = None) -> None:
    """Send every assignment that is not of this epoch (to `urls` only), all at once; wait for `timeout_s` at most.

    A node that does not answer gets its assignment later, by beat. Never raises for what a peer does.
    """
    shards = [shard for shard in _waiting() if urls is None or shard.url in set(urls)]
    _send_all(shards, timeout_s or settings.MLVDB_PROBE_TIMEOUT_S)


def assignments_push_pending() -> None:
    """Send again what was not acknowledged, more and more seldom to a node that does not take it. By beat.

    The first time in a process everyone is told: this node may be reached at another URL than before.
    """
    global _has_said_url
    _sweeps.next()
    if not _has_said_url:
        due = [shard for shard in _remote() if not shard.released]
        _has_said_url = True
    else:
        due = [shard for shard in _waiting() if _sweeps.is_due(shard.attempts)]
    # Nobody waits here, so those that were silent a moment ago are asked as well.
    _send_all(due, settings.MLVDB_PEER_TIMEOUT_S, even_if_silent=True)


def assignments_knock() -> None:
    """Have the assignments sent by a task: after a change that nobody waits for."""
    if Shard.objects.exclude(url="").exclude(released=True).exists():
        publish(PUSH_TASK)


_sweeps = Sweeps()
_has_said_url = False


# -- what to send ------------------------------------------------------------------------------------------------


def _remote() -> list[Shard]:
    return list(Shard.objects.exclude(url=""))


def _waiting() -> list[Shard]:
    epoch = Topology.objects.filter(is_owner=True, sharding_enabled=True).values_list("epoch", flat=True).first()
    if epoch is None:
        return []
    return [
        shard
        for shard in _remote()
        if (not shard.released if shard.state == ShardState.REMOVED else shard.acknowledged_epoch < epoch)
    ]


def _send_all(shards: Sequence[Shard], timeout_s: float, *, even_if_silent: bool = False) -> None:
    # A join takes two calls.
    sent = sent_at_once(
        _errands(shards),
        lambda errand: _sent(errand, timeout_s, even_if_silent),
        within_s=2 * timeout_s + 1.0,
        thread_name="assignment",
    )
    for errand, answer in sent:
        try:
            _note(errand, answer)
        except MLVectorDBError as error:
            logger.warning("assignment_not_noted url=%s error=%s", errand.url, error.message)


def _errands(shards: Sequence[Shard]) -> list[_Errand]:
    topology = Topology.objects.filter(is_owner=True, sharding_enabled=True).first()
    if topology is None or topology.slots is None or not shards:
        return []
    table = SlotTable.of_bytes(bytes(topology.slots))
    asks = coordinator_now(topology.cluster)
    url = own_url()
    return [
        _Errand(
            shard_id=shard.pk,
            url=shard.url,
            document=AssignmentDocument(
                cluster=topology.cluster,
                reign=topology.reign,
                epoch=topology.epoch,
                shard=shard.uid,
                label=shard.label,
                coordinator_node=settings.MLVDB_NODE_ID,
                coordinator_url=url,
                node=shard.node,
                slots=NO_SLOTS if shard.state == ShardState.REMOVED else table.owned_by(shard.pk),
                released=shard.state == ShardState.REMOVED,
                joins=shard.state in (ShardState.NEW, ShardState.REFUSED),
            ),
            asks=asks,
        )
        for shard in shards
    ]


# -- sending: no rows here ---------------------------------------------------------------------------------------

_Answer = dict[str, Any] | MLVectorDBError


def _sent(errand: _Errand, timeout_s: float, even_if_silent: bool) -> _Answer:
    try:
        if errand.document.joins:
            status = ask_status(errand.url, timeout_s=timeout_s, even_if_silent=even_if_silent, field="shard_url")
            told = errand.document
            check_shard_candidate(
                errand.asks, errand.url, status, label=told.label, uid=told.shard, expected_node=told.node
            )
        return peer_client().json(
            errand.url,
            "PUT",
            ASSIGNMENT_PATH,
            json=errand.document.to_document(),
            timeout_s=timeout_s,
            even_if_silent=even_if_silent,
        )
    except MLVectorDBError as error:
        return error


# -- what they answered ------------------------------------------------------------------------------------------


def _note(errand: _Errand, answer: _Answer) -> None:
    if isinstance(answer, MLVectorDBError):
        _note_failure(errand, answer)
    elif errand.document.released:
        _note_released(errand)
    else:
        _note_acknowledged(errand, answer)


def _note_acknowledged(errand: _Errand, status: Mapping[str, Any]) -> None:
    epoch = errand.document.epoch
    Shard.objects.filter(pk=errand.shard_id, acknowledged_epoch__lt=epoch).update(acknowledged_epoch=epoch)
    Shard.objects.filter(pk=errand.shard_id, attempts__gt=0).update(attempts=0, last_error="")
    logger.info("assignment_acknowledged shard=%s epoch=%d", errand.document.label, epoch)
    if not errand.document.joins:
        return
    with registry_change(actor=TASK, action="shard_active", subject=errand.document.label) as change:
        shard = Shard.objects.get(pk=errand.shard_id)
        if not allowed(SHARD_TRANSITIONS, ShardState(shard.state), ShardState.ACTIVE) or shard.state not in (
            ShardState.NEW,
            ShardState.REFUSED,
        ):
            raise Unchanged
        change.before = {"state": shard.state, "node": shard.node}
        shard.state = ShardState.ACTIVE
        shard.node, shard.version = str(status.get("node") or ""), str(status.get("version") or "")[:32]
        shard.last_error = ""
        shard.save(update_fields=["state", "node", "version", "last_error"])
        change.after = {"state": shard.state, "node": shard.node}
        change.epoch_raise()


def _note_released(errand: _Errand) -> None:
    released = Shard.objects.filter(pk=errand.shard_id, state=ShardState.REMOVED, released=False)
    if released.update(released=True, attempts=0, last_error=""):
        logger.info("shard_released shard=%s url=%s", errand.document.label, errand.url)


def _note_failure(errand: _Errand, error: MLVectorDBError) -> None:
    words = words_of(error)
    code = error.peer_code if isinstance(error, PeerRejected) else error.code
    label = errand.document.label
    if isinstance(error, PeerRejected) and code == "stale_epoch" and _is_late(errand, error):
        logger.info("assignment_late shard=%s epoch=%d", label, errand.document.epoch)
        return
    rows = Shard.objects.filter(pk=errand.shard_id)
    is_news = not rows.filter(last_error=words).exists()
    rows.update(attempts=F("attempts") + 1, last_error=words, last_error_at=timezone.now())
    logger.log(logging.WARNING if is_news else logging.DEBUG, "assignment_not_taken shard=%s error=%s", label, words)
    if errand.document.released:
        if code in SHARD_REFUSALS:
            # Whatever is there now has nothing to do with this cluster any more.
            _note_released(errand)
    elif code == "stale_epoch" and isinstance(error, PeerRejected):
        _note_outrun(errand, error)
    elif code == "not_primary" and not errand.document.joins:
        # Another copy took its place: that is looked for, and told.
        failover_knock(errand.shard_id)
    elif code in SHARD_REFUSALS:
        _note_refused(errand, words)


def _is_late(errand: _Errand, error: PeerRejected) -> bool:
    """Whether a newer document of this same registry was there first, which is nobody's failure."""
    known, reign = error.peer_detail.get("epoch"), error.peer_detail.get("reign", 0)
    if errand.document.released or type(known) is not int or type(reign) is not int or reign > errand.document.reign:
        return False
    return errand.document.epoch < known < 2**62 and Topology.objects.filter(epoch__gte=known).exists()


def _note_refused(errand: _Errand, words: str) -> None:
    """A node will not be the shard. One that was it already has rows that nobody else has: a person has to look."""
    if not errand.document.joins:
        alarm_raise(action="shard_refused", subject=errand.document.label, detail={"reason": words})
        return
    with registry_change(actor=TASK, action="shard_refused", subject=errand.document.label) as change:
        if not Shard.objects.filter(pk=errand.shard_id, state=ShardState.NEW).update(state=ShardState.REFUSED):
            raise Unchanged
        change.after = {"state": ShardState.REFUSED.value, "reason": words}


def _note_outrun(errand: _Errand, error: PeerRejected) -> None:
    """A node knows a newer epoch of this registry, which has been set back then: it goes on behind it."""
    known, reign = error.peer_detail.get("epoch"), error.peer_detail.get("reign", 0)
    if type(known) is not int or not 0 <= known < 2**62:
        return
    if type(reign) is int and reign > errand.document.reign:
        # Another node was made the coordinator: its placements will tell this one so.
        alarm_raise(action="deposed", subject=errand.document.label, detail={"message": error.peer_message})
        return
    with registry_change(actor=TASK, action="epoch_outrun", subject=errand.document.label) as change:
        # It may have been raised meanwhile.
        if change.topology.epoch >= known:
            raise Unchanged
        change.before = {"epoch": change.topology.epoch}
        change.after = {"epoch": change.epoch_raise(at_least=known + 1)}
        change.alarm = True
