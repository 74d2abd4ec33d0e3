"""Measuring recall: the sampled queries of each namespace with an index are searched for with and without it.

Preconditions: none; whoever finds the lease taken leaves it at that. A measure opens the shard copy from its newest
manifest alone: rows that no segment has yet are searched exactly, so without them recall is only underrated. Afterwards
each namespace has one more row of history, and one that fell short a wish for new indexes (`vectors.recall.requests`)
and a line in the log; of dropped namespaces nothing is left: no query, no measure, no wish.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from functools import partial

from vectors.engine.namespace import NamespaceView
from vectors.models import Namespace, RecallMeasure, ShardHead
from vectors.recall.comparing import Compared, compared, indexed_rows, own_rows_of
from vectors.recall.measures import latest_of, measure_add, measures_prune
from vectors.recall.requests import requests_prune
from vectors.recall.samples import sample_of, samples_prune
from vectors.store import leases, recovery
from vectors.store.low_priority import at_low_priority

logger = logging.getLogger(__name__)

_clock = time.monotonic

_FEWEST_REAL = 20
_OWN_ROWS = 100
_NAMESPACE_LIMIT_S = 15.0
_SHARD_LIMIT_S = 120.0


def recall_measure(head: ShardHead, *, owner: str, only: Collection[str] | None = None) -> list[RecallMeasure]:
    """Measure the namespaces of a shard copy, or those with the uids `only`; longest unmeasured first.

    One run takes about two minutes at most; what it does not come to is first in the next one.
    """
    samples_prune()
    measures_prune()
    requests_prune()
    lease = leases.take_lease(leases.recall_lease(head.pk), owner)
    if lease is None:
        return []
    with lease:
        opened = recovery.open_shard(head.pk, replay=False)
        latest = latest_of(head.pk)
        alive = Namespace.objects.filter(shard=head, dropped_at__isnull=True).select_related("shard")
        rows = {row.uid: row for row in alive}
        asked = set(rows) if only is None else set(rows).intersection(only)
        spaces = [space for space in opened.engine.namespaces() if space.spec.uid in asked]
        spaces.sort(key=lambda space: 0 if space.spec.uid not in latest else latest[space.spec.uid].pk)
        ends = _clock() + _SHARD_LIMIT_S
        made = []
        for space in spaces:
            if _clock() > ends:
                break
            uid = space.spec.uid
            measure = _measure(rows[uid], space.view(), latest.get(uid))
            if measure is not None:
                made.append(measure)
        return made


def _measure(row: Namespace, view: NamespaceView, latest: RecallMeasure | None) -> RecallMeasure | None:
    indexed = indexed_rows(view)
    # What is promised now: the manifest may be older than the last change of the target.
    target = row.recall_target
    started = _clock()
    if not indexed or target >= 1.0:
        if latest is None or not latest.is_short:
            return None
        # Every search has become exact: an alarm over the index that was there has to end.
        found, is_real = Compared(1.0, 0.0, 0), latest.is_real
    else:
        queries = sample_of(row.uid, row.dimension)
        is_real = queries is not None and len(queries) >= _FEWEST_REAL
        if queries is None or not is_real:
            queries = own_rows_of(view, _OWN_ROWS)
        outcome = at_low_priority(
            partial(compared, view, queries, recall=target, own_rows=not is_real, limit_s=_NAMESPACE_LIMIT_S)
        )
        if outcome is None:
            return None
        found = outcome
    measure = measure_add(
        row,
        found,
        target=target,
        is_real=is_real,
        indexed_rows=indexed,
        rows=view.count,
        took_s=_clock() - started,
    )
    logger.log(
        logging.WARNING if measure.is_short else logging.INFO,
        "%s namespace=%s shard=%s recall=%.4f target=%g queries=%d real=%s indexed_rows=%d took_s=%.2f",
        "recall_short" if measure.is_short else "recall_measured",
        row.name,
        row.shard.label,
        measure.recall,
        target,
        measure.queries,
        is_real,
        indexed,
        measure.took_s,
    )
    return measure
