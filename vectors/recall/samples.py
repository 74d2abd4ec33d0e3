"""The sampled queries of namespaces, as rows: written by web workers now and then, read by who tunes or measures.

They are vectors that clients searched for, and nothing else of the request. A namespace keeps its newest
MLVDB_RECALL_SAMPLES; when it is dropped, or fewer are wanted, they go with the next measure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from django.conf import settings
from django.db import transaction
from django.db.models import Count

from vectors.models import Namespace, QuerySample


def sample_of(namespace_uid: str, dimension: int) -> np.ndarray | None:
    """Return the distinct sampled queries of a namespace, newest first: (n, d) float32, None when there are none."""
    rows = QuerySample.objects.filter(namespace=namespace_uid).order_by("-pk")
    texts = dict.fromkeys(
        bytes(values) for values in rows.values_list("values", flat=True)[: settings.MLVDB_RECALL_SAMPLES]
    )
    fitting = [text for text in texts if len(text) == 4 * dimension]
    if not fitting:
        return None
    return np.frombuffer(b"".join(fitting), dtype="<f4").reshape(len(fitting), dimension).astype(np.float32)


def samples_add(namespace_uid: str, queries: Sequence[np.ndarray]) -> None:
    """Add queries, each (d,) float32, to a namespace's sample; the oldest beyond MLVDB_RECALL_SAMPLES go."""
    kept = settings.MLVDB_RECALL_SAMPLES
    newest = queries[-kept:] if kept else []
    with transaction.atomic():
        QuerySample.objects.bulk_create(
            QuerySample(namespace=namespace_uid, values=np.asarray(query, dtype="<f4").tobytes()) for query in newest
        )
        _keep_newest(namespace_uid)


def samples_prune() -> None:
    """Forget the queries of namespaces that no shard copy of this node has any more, and those that are too many."""
    alive = Namespace.objects.filter(dropped_at__isnull=True).values("uid")
    QuerySample.objects.exclude(namespace__in=alive).delete()
    counts = QuerySample.objects.order_by().values_list("namespace").annotate(count=Count("pk"))
    for uid, count in counts:
        if count > settings.MLVDB_RECALL_SAMPLES:
            _keep_newest(uid)


def _keep_newest(namespace_uid: str) -> None:
    kept = settings.MLVDB_RECALL_SAMPLES
    own = QuerySample.objects.filter(namespace=namespace_uid).order_by("-pk")
    oldest = own.values_list("pk", flat=True)[kept : kept + 1].first()
    if oldest is not None:
        own.filter(pk__lte=oldest).delete()
