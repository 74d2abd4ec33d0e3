"""What changes a node's data besides rows of a namespace: namespaces themselves, shard copies, checkpoints."""

from __future__ import annotations

import logging
import re
import uuid
import zlib
from collections.abc import Callable, Collection

from django.conf import settings
from django.db import IntegrityError
from django.utils import timezone

from vectors.engine.distances import METRICS
from vectors.engine.operations import Kind, NamespaceDrop, NamespacePut, encode
from vectors.errors import Conflict, DimensionMismatch, InvalidInput, NamespaceNotFound, WrongNode
from vectors.models import Namespace, ShardHead
from vectors.names import checked_namespace
from vectors.recall.requests import target_changed
from vectors.store import log
from vectors.store.faults import storage_faults
from vectors.store.recovery import check_node

__all__ = [
    "WrongNode",
    "check_picture",
    "checkpoint_request",
    "dimension_mismatch",
    "ensure_local_shard",
    "merge_request",
    "namespace_drop",
    "namespace_ensure",
    "namespace_put",
    "recall_measure_request",
]

logger = logging.getLogger(__name__)

DEFAULT_SHARD_LABEL = "shard_0"
DEFAULT_METRIC = "cosine"
DEFAULT_RECALL_TARGET = 0.99

_PICTURE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


@storage_faults()
def ensure_local_shard() -> ShardHead:
    """Return the node's shard copy, made on first use. Raise WrongNode when the database is another node's."""
    head = ShardHead.objects.order_by("pk").first()
    if head is None:
        try:
            head = ShardHead.objects.create(label=DEFAULT_SHARD_LABEL)
        except IntegrityError:
            # Another process made it in the same moment.
            head = ShardHead.objects.get(label=DEFAULT_SHARD_LABEL)
    check_node(head.pk)
    return head


@storage_faults()
def namespace_ensure(shard_id: int, name: str, *, dimension: int) -> Namespace:
    """Return the namespace of that name, made with `dimension` when there is none.

    Raise DimensionMismatch when it exists with another: of two first inserts that race, one fixes the dimension.
    """
    row = Namespace.objects.filter(shard_id=shard_id, name=name, dropped_at__isnull=True).first()
    if row is None:
        row, _ = namespace_put(shard_id, name, dimension=dimension, on_other_dimension=DimensionMismatch)
    if row.dimension != dimension:
        raise dimension_mismatch(name, row.dimension, dimension)
    return row


def namespace_put(
    shard_id: int,
    name: str,
    *,
    dimension: int | None = None,
    metric: str | None = None,
    recall_target: float | None = None,
    picture: str | None = None,
    uid: str | None = None,
    on_other_dimension: Callable[..., Exception] = Conflict,
) -> tuple[Namespace, bool]:
    """Make or change a namespace, row and log entry in one transaction; return it and whether it is new.

    Raise InvalidInput for a bad attribute and Conflict for another dimension or metric than it has.
    """
    checked_namespace(name)
    if metric is not None and metric not in METRICS:
        raise InvalidInput(f"metric is one of {', '.join(METRICS)}", field="metric")
    if dimension is not None and not 1 <= dimension <= settings.MLVDB_MAX_DIMENSION:
        raise InvalidInput(f"dimension is 1 to {settings.MLVDB_MAX_DIMENSION}", field="dimension")
    if recall_target is not None and not 0 < recall_target <= 1:
        raise InvalidInput("recall_target is more than 0 and at most 1", field="recall_target")
    with log.append_transaction(shard_id) as open_log:
        row = Namespace.objects.filter(shard_id=shard_id, name=name, dropped_at__isnull=True).first()
        created = row is None
        target_before = None if row is None else row.recall_target
        if row is None:
            if dimension is None:
                raise InvalidInput("a new namespace needs a dimension", field="dimension")
            if (
                Namespace.objects.filter(shard_id=shard_id, dropped_at__isnull=True).count()
                >= settings.MLVDB_MAX_NAMESPACES
            ):
                raise Conflict("the node has MLVDB_MAX_NAMESPACES namespaces")
            row = Namespace(
                shard_id=shard_id,
                uid=uid or uuid.uuid4().hex,
                name=name,
                dimension=dimension,
                metric=metric or DEFAULT_METRIC,
                recall_target=DEFAULT_RECALL_TARGET if recall_target is None else recall_target,
                picture=picture or "",
            )
        else:
            if dimension is not None and dimension != row.dimension:
                if on_other_dimension is DimensionMismatch:
                    raise dimension_mismatch(name, row.dimension, dimension)
                raise Conflict(
                    f"namespace {name} has dimension {row.dimension}, which cannot change", field="dimension"
                )
            if metric is not None and metric != row.metric:
                raise Conflict(f"namespace {name} has metric {row.metric}, which cannot change", field="metric")
            before = (row.recall_target, row.picture)
            row.recall_target = row.recall_target if recall_target is None else recall_target
            row.picture = row.picture if picture is None else picture
            if (row.recall_target, row.picture) == before:
                return row, False
        check_picture(row.picture, row.dimension)
        row.save()
        if target_before is not None:
            target_changed(row, before=target_before)
        put = NamespacePut(row.name, row.dimension, row.metric, row.recall_target, row.picture)
        payload = encode(put)
        open_log.add(row.uid, Kind.NAMESPACE_PUT, 0, payload, zlib.crc32(payload))
    logger.info("namespace_put namespace=%s uid=%s dimension=%d created=%s", name, row.uid, row.dimension, created)
    return row, created


def namespace_drop(shard_id: int, name: str) -> log.Position:
    """End a namespace, row and log entry in one transaction; its files go with the next checkpoint.

    Raise NamespaceNotFound.
    """
    with log.append_transaction(shard_id) as open_log:
        row = Namespace.objects.filter(shard_id=shard_id, name=name, dropped_at__isnull=True).first()
        if row is None:
            raise NamespaceNotFound(f"there is no namespace {name}", field="namespace")
        row.dropped_at = timezone.now()
        row.save(update_fields=["dropped_at"])
        payload = encode(NamespaceDrop())
        position = open_log.add(row.uid, Kind.NAMESPACE_DROP, 0, payload, zlib.crc32(payload))
    logger.info("namespace_dropped namespace=%s uid=%s seq=%d", name, row.uid, position.seq)
    return position


def dimension_mismatch(name: str, dimension: int, got: int, *, field: str = "values") -> DimensionMismatch:
    """Return the error for a vector of another dimension than its namespace's."""
    return DimensionMismatch(
        f"namespace {name} has dimension {dimension}, got {got} values",
        field=field,
        detail={"namespace": name, "dimension": dimension, "got": got},
    )


def checkpoint_request(shard_uid: str, *, if_due: bool = True) -> bool:
    """Ask Celery for a checkpoint; return whether the broker took the knock. Never raises: the sweep comes by anyway.

    `if_due` leaves a tail alone that is small and young when the task runs.
    """
    from mlvdb_site.celery import publish

    return publish("vectors.tasks.checkpoint_shard" if if_due else "vectors.tasks.checkpoint_now", shard_uid)


def recall_measure_request(shard_uid: str, namespace_uids: Collection[str]) -> bool:
    """Ask Celery to measure the recall of some namespaces of a shard copy; return whether the broker took the knock."""
    from mlvdb_site.celery import publish

    return publish("vectors.tasks.recall_measure_now", shard_uid, sorted(namespace_uids))


def merge_request(shard_uid: str) -> bool:
    """Ask Celery to merge and index the segments of a shard; return whether the broker took the knock."""
    from mlvdb_site.celery import publish

    return publish("vectors.tasks.merge_shard", shard_uid)


def check_picture(picture: str, dimension: int) -> None:
    """Raise InvalidInput for a picture that rows of a dimension cannot be; an empty one says that they are none."""
    if not picture:
        return
    form = _PICTURE.fullmatch(picture)
    if form is None or int(form[1]) * int(form[2]) != dimension:
        raise InvalidInput("picture is WIDTHxHEIGHT with as many points as the dimension", field="picture")
