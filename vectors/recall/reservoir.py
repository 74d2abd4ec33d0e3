"""The queries of this process that may become samples: kept in memory by requests, written by the background thread.

A request only offers; of all that are offered between two writes a fair few are kept (reservoir sampling, Vitter's
algorithm R), so a sample is of the whole traffic and not of its last moment.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence

import numpy as np
from django.conf import settings

from vectors.recall.samples import samples_add

logger = logging.getLogger(__name__)

_KEPT = 32
_OFFERED_OF_BATCH = 8
_FIRST_INTERVAL_S = 5.0
_LATER_INTERVAL_S = 60.0
_MOST_NAMESPACES = 1000


class _Stream:
    """The queries of one namespace since the last write."""

    __slots__ = ("due", "kept", "seen", "written")

    def __init__(self, due: float) -> None:
        self.kept: list[np.ndarray] = []
        self.seen = 0
        self.written = 0
        self.due = due


class QueryReservoir:
    """What one process has been asked. Threads may offer at once: a race costs a query its place, and nothing else."""

    timer: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self._streams: dict[str, _Stream] = {}

    def offer(self, namespace_uid: str, query: np.ndarray) -> None:
        """Offer one query, (d,); where it is kept it is copied as float32."""
        stream = self._streams.get(namespace_uid)
        if stream is None:
            if len(self._streams) >= _MOST_NAMESPACES:
                return
            stream = self._streams.setdefault(namespace_uid, _Stream(self.timer() + _FIRST_INTERVAL_S))
        stream.seen += 1
        kept = stream.kept
        if len(kept) < _KEPT:
            kept.append(query.astype(np.float32))
            return
        place = int(random.random() * stream.seen)
        if place < _KEPT:
            kept[place] = query.astype(np.float32)

    def offer_batch(self, namespace_uid: str, queries: Sequence[np.ndarray]) -> None:
        """Offer some of a batch: one caller with large batches must not be the whole sample."""
        for query in queries[:: -(-len(queries) // _OFFERED_OF_BATCH)] if queries else ():
            self.offer(namespace_uid, query)

    def flush(self) -> None:
        """Write what is due: every few seconds until a namespace has a whole sample of this process, then now and then.

        What cannot be written is dropped: a sample is worth no second attempt.
        """
        now = self.timer()
        for uid, stream in list(self._streams.items()):
            if now < stream.due:
                continue
            kept, stream.kept, stream.seen = stream.kept, [], 0
            # A query of zeros has no neighbours: all rows are equally near.
            kept = [query for query in kept if query.any()]
            if not kept:
                self._streams.pop(uid, None)
                continue
            stream.written += len(kept)
            is_full = stream.written >= settings.MLVDB_RECALL_SAMPLES
            stream.due = now + (_LATER_INTERVAL_S if is_full else _FIRST_INTERVAL_S)
            try:
                samples_add(uid, kept)
            except Exception as error:
                # The database may be away or busy; searches go on, and so must the thread that looks after them.
                logger.warning("query_samples_lost namespace=%s queries=%d error=%r", uid, len(kept), error)
