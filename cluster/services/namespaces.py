"""The namespaces of a sharded coordinator: one row each in its registry, with one uid on all shards.

A namespace is made by its first write, in one transaction of the registry: of two first writes that race, one fixes the
dimension. Its uid is later than those of all before it (`vectors.namespace_uids`), so a shard can tell a namespace that
was dropped from the one that was made in its place, in whichever order it hears of them.

Shards learn of a namespace by the write itself. What all of them must hear, a change or an end, is written as errands
in the transaction of the change (`cluster.services.namespace_errands`): a shard that is down hears it when it is back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from django.conf import settings
from django.db.models import Max, QuerySet
from django.db.models.functions import Substr
from django.utils import timezone

from cluster.models import NamespaceErrand, Replica, Shard, ShardedNamespace
from cluster.services.changes import Change, Unchanged, registry_change
from cluster.services.full_replicas import namespaces_spread
from cluster.services.namespace_errands import errands_deliver, spec_of
from cluster.sharding.view import ShardingView
from cluster.states import ShardState
from cluster.topology import topology
from vectors.engine.distances import METRICS
from vectors.engine.namespace import NamespaceSpec
from vectors.errors import Conflict, DimensionMismatch, InvalidInput, NamespaceNotFound, NotReady
from vectors.names import checked_namespace
from vectors.namespace_uids import VERSION, VERSION_AT, ordered_uid
from vectors.services import DEFAULT_METRIC, DEFAULT_RECALL_TARGET, check_picture, dimension_mismatch
from vectors.store.faults import storage_faults

logger = logging.getLogger(__name__)

WRITER = "write"
"""The actor of a namespace that its first vector makes."""


def namespace_resolve(name: str) -> NamespaceSpec | None:
    """Return a living namespace; None when there is none. As of the picture: every change of one makes a new picture.

    Raise StorageError and the like where it must be read and cannot be.
    """
    return _known.resolve(name)


def namespace_list() -> list[NamespaceSpec]:
    """Return the living namespaces, sorted by name. Raise StorageError and the like."""
    with storage_faults():
        _check_all_known("")
        return [spec_of(row) for row in _alive().order_by("name")]


def namespaces_by_uid(uids: Iterable[str]) -> dict[str, NamespaceSpec]:
    """Return those of some namespaces that live, by uid, as committed now. Raise StorageError and the like."""
    with storage_faults():
        return {row.uid: spec_of(row) for row in _alive().filter(uid__in=set(uids))}


def namespace_ensure(name: str, *, dimension: int) -> NamespaceSpec:
    """Return the namespace that rows of `dimension` are written to, made when there is none.

    Raise DimensionMismatch when it has another.
    """
    spec = namespace_resolve(name)
    if spec is None:
        spec, _ = namespace_create(name, dimension=dimension, actor=WRITER, on_other_dimension=DimensionMismatch)
    if spec.dimension != dimension:
        raise dimension_mismatch(name, spec.dimension, dimension)
    return spec


def namespace_create(
    name: str,
    *,
    dimension: int,
    metric: str | None = None,
    recall_target: float | None = None,
    picture: str | None = None,
    actor: str,
    on_other_dimension: Callable[..., Exception] = Conflict,
) -> tuple[NamespaceSpec, bool]:
    """Make a namespace; return it and whether it is new: the same one again changes nothing of it.

    Raise InvalidInput for a bad attribute, and Conflict (or DimensionMismatch, as asked) when it is there with another
    dimension or metric.
    """
    checked_namespace(name)
    _check(dimension=dimension, metric=metric, recall_target=recall_target)
    row: ShardedNamespace | None = None
    created = False
    with registry_change(actor=actor, action="namespace_created", subject=name) as change:
        row = _alive().filter(name=name).first()
        if row is not None:
            raise Unchanged
        _check_all_known(name)
        if _alive().count() >= settings.MLVDB_MAX_NAMESPACES:
            raise Conflict("the cluster has MLVDB_MAX_NAMESPACES namespaces")
        check_picture(picture or "", dimension)
        row = ShardedNamespace.objects.create(
            uid=_uid_next(),
            name=name,
            dimension=dimension,
            metric=metric or DEFAULT_METRIC,
            recall_target=DEFAULT_RECALL_TARGET if recall_target is None else recall_target,
            picture=picture or "",
        )
        change.after = _summary(row)
        created = True
    assert row is not None
    _check_same(row, dimension=dimension, metric=metric, on_other_dimension=on_other_dimension)
    if created:
        namespaces_spread()
        logger.info("namespace_created namespace=%s uid=%s dimension=%d", name, row.uid, dimension)
    return spec_of(row), created


def namespace_change(
    name: str,
    *,
    dimension: int | None = None,
    metric: str | None = None,
    recall_target: float | None = None,
    picture: str | None = None,
    actor: str,
) -> NamespaceSpec:
    """Change what may change of a namespace, here and on all shards; those that do not answer hear it later.

    Raise NamespaceNotFound, InvalidInput for a bad attribute, and Conflict for another dimension or metric than it has.
    """
    _check(dimension=dimension, metric=metric, recall_target=recall_target)
    row: ShardedNamespace | None = None
    changed = False
    with registry_change(actor=actor, action="namespace_changed", subject=name) as change:
        row = _alive().filter(name=name).first()
        if row is None:
            raise NamespaceNotFound(f"there is no namespace {name}", field="namespace")
        _check_same(row, dimension=dimension, metric=metric)
        change.before = _summary(row)
        row.recall_target = row.recall_target if recall_target is None else recall_target
        row.picture = row.picture if picture is None else picture
        change.after = _summary(row)
        if change.after == change.before:
            raise Unchanged
        check_picture(row.picture, row.dimension)
        row.save(update_fields=["recall_target", "picture"])
        _errands_write(row)
        changed = True
    assert row is not None
    if changed:
        errands_deliver(namespace=row)
    return spec_of(row)


def namespace_put(
    name: str,
    *,
    dimension: int | None = None,
    metric: str | None = None,
    recall_target: float | None = None,
    picture: str | None = None,
    actor: str,
) -> tuple[NamespaceSpec, bool]:
    """Make or change a namespace; return it and whether it is new. Raise what `namespace_create` and `_change` do."""
    if namespace_resolve(checked_namespace(name)) is None:
        if dimension is None:
            raise InvalidInput("a new namespace needs a dimension", field="dimension")
        made = namespace_create(
            name, dimension=dimension, metric=metric, recall_target=recall_target, picture=picture, actor=actor
        )
        if made[1]:
            return made
    changed = namespace_change(
        name, dimension=dimension, metric=metric, recall_target=recall_target, picture=picture, actor=actor
    )
    return changed, False


def namespace_drop(name: str, *, actor: str = WRITER) -> NamespaceSpec:
    """End a namespace: at once for every request here, then on all shards, in parallel; return what it was.

    Shards that do not answer hear it when they do; what they still have of it is not seen by anybody meanwhile. Raise
    NamespaceNotFound.
    """
    row: ShardedNamespace | None = None
    with registry_change(actor=actor, action="namespace_dropped", subject=name) as change:
        row = _alive().filter(name=name).first()
        if row is None:
            raise NamespaceNotFound(f"there is no namespace {name}", field="namespace")
        row.dropped_at = timezone.now()
        row.save(update_fields=["dropped_at"])
        change.before = _summary(row)
        _errands_write(row)
    assert row is not None
    errands_deliver(namespace=row)
    if NamespaceErrand.objects.filter(namespace=row).exists() and Replica.objects.exists():
        # Whoever takes this node's place has to know what a shard, when it is back, does not.
        with registry_change(actor=actor, action="namespace_end_pending", subject=name) as change:
            change.epoch_raise()
    logger.info("namespace_dropped namespace=%s uid=%s", name, row.uid)
    return spec_of(row)


def namespaces_import(change: Change, specs: Iterable[NamespaceSpec]) -> None:
    """Take the namespaces that this node has by itself into the registry, as they are, inside a change of it."""
    ShardedNamespace.objects.bulk_create(
        ShardedNamespace(
            uid=spec.uid,
            name=spec.name,
            dimension=spec.dimension,
            metric=spec.metric,
            recall_target=spec.recall_target,
            picture=spec.picture,
        )
        for spec in specs
    )


class _Known:
    """The namespaces that were looked up under the present picture, those that do not exist as well."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: ShardingView | None = None
        self._specs: dict[str, NamespaceSpec | None] = {}

    def resolve(self, name: str) -> NamespaceSpec | None:
        # The picture comes first: what is read afterwards is at least as new as its marker, and a newer marker makes
        # a newer picture.
        picture = topology().sharding
        with self._lock:
            if picture is not self._of:
                self._of, self._specs = picture, {}
            if name in self._specs:
                return self._specs[name]
        with storage_faults():
            row = _alive().filter(name=name).first()
            if row is None:
                _check_all_known(name)
        spec = None if row is None else spec_of(row)
        with self._lock:
            # Names that do not exist are as many as clients can think of.
            if picture is not None and picture is self._of and len(self._specs) < settings.MLVDB_MAX_NAMESPACES:
                self._specs[name] = spec
        return spec


_known = _Known()


def _alive() -> QuerySet[ShardedNamespace]:
    return ShardedNamespace.objects.filter(dropped_at__isnull=True)


def _uid_next() -> str:
    """Return a uid later than all that the registry has, inside a change of it; of dropped namespaces as well."""
    made = ShardedNamespace.objects.annotate(version=Substr("uid", VERSION_AT + 1, 1)).filter(version=VERSION)
    newest = made.aggregate(newest=Max("uid"))["newest"]
    return ordered_uid(now_ms=int(timezone.now().timestamp() * 1000), newest=newest or "")


def _check_all_known(name: str) -> None:
    """Raise NotReady while a shard may have namespaces that this node, a new coordinator, has not heard of."""
    waiting = Shard.objects.filter(recheck_due=True).order_by("label").values_list("label", flat=True)
    if labels := list(waiting):
        raise NotReady(
            f"whether there is {f'a namespace {name}' if name else 'another namespace'} is known when the shards "
            f"{', '.join(labels)} have been asked: this node has just become the coordinator",
            detail={"shards": labels},
            retry_after_s=1,
        )


def _errands_write(row: ShardedNamespace) -> None:
    """Note for every shard that it must hear of a namespace.

    An errand under way is replaced, not kept: who ends it would end this one too, with what was said before.
    """
    NamespaceErrand.objects.filter(namespace=row).delete()
    shards = [shard for shard in Shard.objects.all() if ShardState(shard.state).may_own]
    NamespaceErrand.objects.bulk_create(NamespaceErrand(shard=shard, namespace=row) for shard in shards)


def _check(*, dimension: int | None, metric: str | None, recall_target: float | None) -> None:
    if metric is not None and metric not in METRICS:
        raise InvalidInput(f"metric is one of {', '.join(METRICS)}", field="metric")
    if dimension is not None and not 1 <= dimension <= settings.MLVDB_MAX_DIMENSION:
        raise InvalidInput(f"dimension is 1 to {settings.MLVDB_MAX_DIMENSION}", field="dimension")
    if recall_target is not None and not 0 < recall_target <= 1:
        raise InvalidInput("recall_target is more than 0 and at most 1", field="recall_target")


def _check_same(
    row: ShardedNamespace,
    *,
    dimension: int | None,
    metric: str | None,
    on_other_dimension: Callable[..., Exception] = Conflict,
) -> None:
    """Raise when a namespace is not of the dimension or metric that was asked for."""
    if dimension is not None and dimension != row.dimension:
        if on_other_dimension is DimensionMismatch:
            raise dimension_mismatch(row.name, row.dimension, dimension)
        raise Conflict(f"namespace {row.name} has dimension {row.dimension}, which cannot change", field="dimension")
    if metric is not None and metric != row.metric:
        raise Conflict(f"namespace {row.name} has metric {row.metric}, which cannot change", field="metric")


def _summary(row: ShardedNamespace) -> dict[str, object]:
    return {
        "uid": row.uid,
        "dimension": row.dimension,
        "metric": row.metric,
        "recall_target": row.recall_target,
        "picture": row.picture,
    }
