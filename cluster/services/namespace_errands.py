"""Errands of namespaces: what each shard has yet to be told of a namespace's change or end.

They are written in the transaction of the change, delivered to all shards at once right after it, and again by beat to
those that did not answer. What is delivered is the namespace as it is then, so a late errand tells the newest, and one
delivered twice changes nothing. An errand ends by its own key: one written meanwhile is another, and stays.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from django.conf import settings
from django.db.models import F
from django.utils import timezone

from cluster.models import NamespaceErrand, Shard, ShardedNamespace, Topology
from cluster.services.candidates import words_of
from cluster.services.sending import sent_at_once
from cluster.services.sweeps import Sweeps
from cluster.transport.client import peer_client
from cluster.transport.messages import shard_path
from vectors.engine.distances import Metric
from vectors.engine.namespace import NamespaceSpec
from vectors.errors import InvalidInput, MLVectorDBError
from vectors.models import ShardHead

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NamespaceChange:
    """What a shard is told of a namespace: that it is as `spec` says, or that it has ended."""

    spec: NamespaceSpec
    has_ended: bool

    def to_document(self) -> dict[str, Any]:
        """Return its part of the request to a shard's node."""
        spec = self.spec
        return {
            "uid": spec.uid,
            "name": spec.name,
            "dimension": spec.dimension,
            "metric": spec.metric,
            "recall_target": spec.recall_target,
            "picture": spec.picture,
            "has_ended": self.has_ended,
        }

    @classmethod
    def of(cls, part: Any) -> NamespaceChange:
        """Read it; raise InvalidInput for anything else."""
        try:
            texts = [part[name] for name in ("uid", "name", "metric", "picture")]
            if not all(type(text) is str for text in texts) or type(part["dimension"]) is not int:
                raise TypeError("a text or number is another thing")
            spec = NamespaceSpec(
                part["uid"],
                part["name"],
                part["dimension"],
                cast(Metric, part["metric"]),
                float(part["recall_target"]),
                part["picture"],
            )
            return cls(spec, part["has_ended"] is True)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"not a change of a namespace: {error!r}"[:200], field="changes") from None


@dataclass(slots=True)
class _Round:
    """The errands to one shard."""

    shard: Shard
    shard_id: int | None
    cluster: str
    changes: list[NamespaceChange] = field(default_factory=list)
    errands: list[int] = field(default_factory=list)


def spec_of(row: ShardedNamespace) -> NamespaceSpec:
    """Return what a row of the registry says."""
    return NamespaceSpec(row.uid, row.name, row.dimension, cast(Metric, row.metric), row.recall_target, row.picture)


def errands_deliver(*, namespace: ShardedNamespace, timeout_s: float | None = None) -> None:
    """Deliver what is to be told of one namespace, to all shards at once; never raises for what a shard does."""
    _deliver(list(NamespaceErrand.objects.filter(namespace=namespace)), timeout_s or settings.MLVDB_PROBE_TIMEOUT_S)


def errands_deliver_pending() -> None:
    """Deliver again what was not delivered, more and more seldom to a shard that does not take it. By beat."""
    _sweeps.next()
    due = [errand for errand in NamespaceErrand.objects.all() if _sweeps.is_due(errand.attempts)]
    # Nobody waits here, so those that were silent a moment ago are asked as well.
    _deliver(due, settings.MLVDB_PEER_TIMEOUT_S, even_if_silent=True)


def changes_take(shard_id: int, changes: Sequence[NamespaceChange]) -> None:
    """Do what a shard is told of namespaces, in its copy on this node; what is so already changes nothing."""
    from vectors.query_processor.moving import MovingCopy

    copy = MovingCopy(shard_id)
    for change in changes:
        if change.has_ended:
            copy.namespace_end(change.spec.uid)
        else:
            copy.namespace_adopt(change.spec)


_sweeps = Sweeps()


def _deliver(errands: Sequence[NamespaceErrand], timeout_s: float, *, even_if_silent: bool = False) -> None:
    rounds = _rounds(errands)
    if not rounds:
        return

    def here() -> None:
        for one in rounds:
            if one.shard.is_local:
                _note(one, _done_here(one))

    sent = sent_at_once(
        [one for one in rounds if not one.shard.is_local],
        lambda one: _sent(one, timeout_s, even_if_silent),
        within_s=timeout_s + 1.0,
        thread_name="namespaces",
        meanwhile=here,
    )
    for one, error in sent:
        _note(one, error)


def _rounds(errands: Sequence[NamespaceErrand]) -> list[_Round]:
    cluster = Topology.objects.filter(is_owner=True).values_list("cluster", flat=True).first()
    if cluster is None or not errands:
        return []
    rounds: dict[int, _Round] = {}
    rows = NamespaceErrand.objects.filter(pk__in=[errand.pk for errand in errands])
    heads = dict(ShardHead.objects.values_list("uid", "pk"))
    for errand in rows.select_related("shard", "namespace").order_by("pk"):
        shard, namespace = errand.shard, errand.namespace
        one = rounds.setdefault(shard.pk, _Round(shard, heads.get(shard.uid), cluster))
        one.changes.append(NamespaceChange(spec_of(namespace), namespace.dropped_at is not None))
        one.errands.append(errand.pk)
    return list(rounds.values())


def _sent(one: _Round, timeout_s: float, even_if_silent: bool) -> MLVectorDBError | None:
    body = {"cluster": one.cluster, "changes": [change.to_document() for change in one.changes]}
    try:
        peer_client().json(
            one.shard.url,
            "PUT",
            shard_path(one.shard.uid, "namespaces"),
            json=body,
            timeout_s=timeout_s,
            even_if_silent=even_if_silent,
        )
    except MLVectorDBError as error:
        return error
    return None


def _done_here(one: _Round) -> MLVectorDBError | None:
    if one.shard_id is None:
        # Its copy is gone with all its namespaces; the registry is about to say so.
        return None
    try:
        changes_take(one.shard_id, one.changes)
    except MLVectorDBError as error:
        return error
    return None


def _note(one: _Round, error: MLVectorDBError | None) -> None:
    rows = NamespaceErrand.objects.filter(pk__in=one.errands)
    if error is None:
        rows.delete()
        return
    words = words_of(error)
    rows.update(attempts=F("attempts") + 1, last_error=words)
    Shard.objects.filter(pk=one.shard.pk).update(last_error=words, last_error_at=timezone.now())
    logger.warning("namespace_errand_failed shard=%s errands=%d error=%s", one.shard.label, len(one.errands), words)
