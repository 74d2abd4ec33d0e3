"""Which searches become samples of what a namespace is asked. Never a database statement: see `QueryReservoir`."""

from __future__ import annotations

from collections.abc import Sequence

from django.conf import settings

from vectors.engine import index
from vectors.engine.namespace import NamespaceView
from vectors.engine.search import Wanted
from vectors.runtime import runtime


def sample_queries(view: NamespaceView, wanteds: Sequence[Wanted]) -> None:
    """Offer searches that an index answers, or will: by the namespace's own metric, not exact, among enough rows."""
    spec = view.spec
    if not settings.MLVDB_RECALL_SAMPLES or not index.worthwhile(
        view.count, spec.dimension, min_rows=settings.MLVDB_INDEX_MIN_ROWS
    ):
        return
    queries = runtime().queries
    if len(wanteds) == 1:
        wanted = wanteds[0]
        if wanted.query.metric == spec.metric and not wanted.exact:
            queries.offer(spec.uid, wanted.query.exact)
        return
    queries.offer_batch(
        spec.uid, [item.query.exact for item in wanteds if item.query.metric == spec.metric and not item.exact]
    )
