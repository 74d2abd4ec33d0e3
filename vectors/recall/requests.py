"""Wishes that the indexes of a namespace be tuned anew: asked by services and measures, heeded by the next merge."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from vectors.models import IndexRequest, Namespace


class Wish(NamedTuple):
    """The newest wish for one namespace of a shard copy; `uid` is the namespace's."""

    uid: str
    pk: int
    reason: str


def ask(namespace: Namespace, reason: IndexRequest.Reason) -> None:
    """Wish for new indexes of a namespace. What is wished again while a merge is at work is heeded after it."""
    newest = IndexRequest.objects.create(namespace=namespace, reason=reason)
    IndexRequest.objects.filter(namespace=namespace, pk__lt=newest.pk).delete()


def target_changed(namespace: Namespace, *, before: float) -> None:
    """Wish for new indexes where a target was raised: what an index was tuned to reach may be less than that.

    A lowered one needs none: searches read fewer cells of the same index. Runs in the transaction of the change.
    """
    if namespace.recall_target > before:
        ask(namespace, IndexRequest.Reason.TARGET)


def pending(shard_id: int) -> dict[str, Wish]:
    """Return the newest wish of each living namespace of a shard copy, by uid of the namespace."""
    rows = IndexRequest.objects.filter(namespace__shard_id=shard_id, namespace__dropped_at__isnull=True)
    columns = rows.order_by("pk").values_list("namespace__uid", "pk", "reason")
    return {uid: Wish(uid, pk, reason) for uid, pk, reason in columns}


def requests_prune() -> None:
    """Forget the wishes for dropped namespaces: no merge heeds them."""
    IndexRequest.objects.filter(namespace__dropped_at__isnull=False).delete()


def done(shard_id: int, wishes: Iterable[Wish]) -> None:
    """Forget wishes that were heeded or cannot be; a newer one for the same namespace stays."""
    for wish in wishes:
        IndexRequest.objects.filter(namespace__shard_id=shard_id, namespace__uid=wish.uid, pk__lte=wish.pk).delete()
