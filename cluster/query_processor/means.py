"""What the requests of one process share: threads that call, threads that may wait, whose turn it is."""

from __future__ import annotations

import itertools
import os
import threading

from django.conf import settings
from django.db import connections

from cluster.query_processor.copies import Here
from cluster.query_processor.staleness import hearing
from cluster.replication.knocks import knock
from cluster.routing.choice import Copy
from cluster.routing.threads import CallThreads
from cluster.routing.waits import Waits
from cluster.topology import ShardView
from vectors.query_processor import LocalQueryProcessor


class Means:
    """The means of one process."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.waits = Waits(settings.MLVDB_THREADS)
        # A call may end in a look at the database (a refused connection is noted): the connection is not kept.
        self.threads = CallThreads(per_peer=settings.MLVDB_THREADS, on_idle=connections.close_all)
        self._turns = itertools.count()
        self._local: dict[int, LocalQueryProcessor] = {}
        self._primaries: dict[int, LocalQueryProcessor] = {}
        # Processes of one node begin with different shards.
        self._drawn = os.getpid()
        self._drawing = threading.Lock()

    def turn(self) -> int:
        """Return the number of a read, counting up: what spreads them."""
        return next(self._turns)

    def draws(self, count: int) -> int:
        """Return the number of the first of `count` generated ids, counting up: whose turn it is."""
        with self._drawing:
            first = self._drawn
            self._drawn += count
        return first

    def primary(self, shard_id: int) -> LocalQueryProcessor:
        """Return a copy of this node to write to, which tells the senders."""
        processor = self._primaries.get(shard_id)
        if processor is None:
            processor = self._primaries.setdefault(shard_id, LocalQueryProcessor(shard_id, on_knock=knock))
        return processor

    def here(self, shard: ShardView, copy: Copy) -> Here:
        """Return the copy of a shard on this node, to read from."""
        assert shard.shard_id is not None
        return Here(shard, shard.shard_id, copy, self.own(shard.shard_id), hearing())

    def own(self, shard_id: int) -> LocalQueryProcessor:
        """Return a copy of this node to read from, by its key."""
        processor = self._local.get(shard_id)
        if processor is None:
            processor = self._local.setdefault(shard_id, LocalQueryProcessor(shard_id))
        return processor


_means: Means | None = None
_lock = threading.Lock()


def means() -> Means:
    """Return this process's means, made on first use."""
    global _means
    current = _means
    if current is None:
        with _lock:
            current = _means = _means or Means()
    return current


def means_forget() -> None:
    """Forget the means of this process: for tests, and for a process that was given other settings."""
    global _means
    _means = None


def _forget_after_fork() -> None:
    global _means, _lock
    # The lock may have been held by a thread that does not exist in the child.
    _means, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
