"""The history of measured recall, as rows: written by each measure, read by pages and alarms."""

from __future__ import annotations

from collections.abc import Iterable

from django.db.models import Max, QuerySet

from vectors.models import IndexRequest, Namespace, RecallMeasure
from vectors.recall import requests
from vectors.recall.comparing import Compared

_HISTORY = 500
_PRUNE_AT = 550


def measure_add(
    namespace: Namespace,
    compared: Compared,
    *,
    target: float,
    is_real: bool,
    indexed_rows: int,
    rows: int,
    took_s: float,
) -> RecallMeasure:
    """Note a measure; one that falls short wishes for new indexes, the first time and then ever more seldom.

    Where they cannot be tuned any better with the same queries, to build them again every ten minutes would not help.
    """
    is_short = compared.is_short(target)
    measure = RecallMeasure.objects.create(
        namespace=namespace,
        recall=compared.recall,
        target=target,
        queries=compared.queries,
        is_real=is_real,
        is_short=is_short,
        indexed_rows=indexed_rows,
        rows=rows,
        took_s=took_s,
    )
    if is_short and _is_power_of_two(_short_in_a_row(namespace)):
        requests.ask(namespace, IndexRequest.Reason.MEASURED)
    _prune(namespace)
    return measure


def measures_prune() -> None:
    """Forget the measures of dropped namespaces: their rows stay for ever, since a dropped uid never returns."""
    RecallMeasure.objects.filter(namespace__dropped_at__isnull=False).delete()


def latest_of(shard_id: int) -> dict[str, RecallMeasure]:
    """Return the newest measure of each living namespace of a shard copy, by uid of the namespace."""
    alive = Namespace.objects.filter(dropped_at__isnull=True, shard_id=shard_id)
    return {measure.namespace.uid: measure for measure in _latest(alive)}


def newest_measures(namespaces: Iterable[Namespace]) -> dict[int, RecallMeasure]:
    """Return the newest measure of each of some namespaces, by primary key of the namespace."""
    pks = [namespace.pk for namespace in namespaces]
    return {measure.namespace_id: measure for measure in _latest(Namespace.objects.filter(pk__in=pks))}


def measures_alive(*, most: int) -> QuerySet[RecallMeasure]:
    """Return the newest measures of this node's living namespaces, at most so many, the lowest recall first."""
    return _latest(Namespace.objects.filter(dropped_at__isnull=True)).order_by("recall", "pk")[:most]


def shortfalls() -> list[RecallMeasure]:
    """Return the newest measures of this node's namespaces that fall short of what is promised now."""
    latest = _latest(Namespace.objects.filter(dropped_at__isnull=True))
    # A target that was lowered since, to what was measured, is no alarm any more.
    return [item for item in latest if item.is_short and item.recall < item.namespace.recall_target]


def _latest(namespaces: QuerySet[Namespace]) -> QuerySet[RecallMeasure]:
    newest = namespaces.annotate(newest=Max("recall_measures__pk")).filter(newest__isnull=False)
    pks = newest.order_by().values("newest")
    return RecallMeasure.objects.filter(pk__in=pks).select_related("namespace", "namespace__shard").order_by("pk")


def _short_in_a_row(namespace: Namespace) -> int:
    own = RecallMeasure.objects.filter(namespace=namespace)
    last_good = own.filter(is_short=False).aggregate(pk=Max("pk"))["pk"] or 0
    return own.filter(pk__gt=last_good).count()


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def _prune(namespace: Namespace) -> None:
    own = RecallMeasure.objects.filter(namespace=namespace)
    if own.count() > _PRUNE_AT:
        oldest_kept = own.order_by("-pk").values_list("pk", flat=True)[_HISTORY - 1]
        own.filter(pk__lt=oldest_kept).delete()
