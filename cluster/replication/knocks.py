"""Knocks: a write that finds nobody told of it tells the senders, in the background.

A knock is lost when the broker is down; then `knocked` is taken back, so that the next write tries again, and beat's
sweep knocks for whatever lags. It never delays a write: a thread of the process does the publishing.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time

from django.db import DatabaseError, connection

from cluster.states import PeerHealth
from cluster.topology import topology
from mlvdb_site.celery import publish
from vectors.errors import MLVectorDBError
from vectors.services import checkpoint_request
from vectors.store import log

logger = logging.getLogger(__name__)

SHIP_TASK = "cluster.tasks.replication_ship"
FAILOVER_TASK = "cluster.tasks.sharding_failover"

SHARD_HEALTH_TASK = "cluster.tasks.health_shards"

_LOOK_EVERY_S = 1.0
_PROBE_EVERY_S = 3.0
"""About as long as a round of probes of a node that is silent."""

_BROKER_AWAY_S = 1.0
"""How long to wait with taking a knock back: while the broker is away, each would cost the next write a commit."""


def knock(shard_uid: str) -> None:
    """Have a ship task published for every replica of a shard, soon; returns at once and never raises."""
    _knocker_of_this_process().knock(shard_uid)


def failover_knock(number: int) -> None:
    """Have the primary of a shard on another node looked for, soon: the node that was has said that it is not it.

    Once in a second for each process; never raises.
    """
    now = time.monotonic()
    if now - _looked_at.get(number, -_LOOK_EVERY_S) >= _LOOK_EVERY_S:
        _looked_at[number] = now
        publish(FAILOVER_TASK, number)


def silence_knock() -> None:
    """Have the nodes of shards probed soon: one of them gave no answer in time. Seldom, and never raises."""
    global _probed_at
    now = time.monotonic()
    if now - _probed_at >= _PROBE_EVERY_S:
        _probed_at = now
        publish(SHARD_HEALTH_TASK)


_looked_at: dict[int, float] = {}
_probed_at = -math.inf


def checkpoint_knock(shard_uid: str) -> None:
    """Have a checkpoint of this node's copy asked for, soon; returns at once and never raises."""
    _knocker_of_this_process().knock(shard_uid, checkpoint=True)


class Knocker:
    """The thread that publishes; several knocks that come while it is busy are one."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._wanted: set[tuple[str, bool]] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Publish no more: the thread ends before this returns. What was not published yet is left to the sweep."""
        with self._changed:
            self._stopped.set()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def knock(self, shard_uid: str, *, checkpoint: bool = False) -> None:
        """Note that a shard has news, or a long tail, and see to it that the thread runs."""
        with self._changed:
            self._wanted.add((shard_uid, checkpoint))
            if self._stopped.is_set():
                return
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="knocks", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._wanted and not self._stopped.is_set():
                    self._changed.wait()
                if self._stopped.is_set():
                    return
                wanted, self._wanted = self._wanted, set()
            try:
                for shard_uid, checkpoint in wanted:
                    if checkpoint:
                        checkpoint_request(shard_uid)
                    else:
                        self._publish(shard_uid)
            except Exception:
                # The sweep knocks again; this thread must be there for the next write.
                logger.exception("knock_failed")
            finally:
                connection.close_if_unusable_or_obsolete()

    def _publish(self, shard_uid: str) -> None:
        shard = topology().shards.get(shard_uid)
        if shard is None or not shard.copies:
            return
        for replica_id in {
            copy.replica_id
            for copy in shard.copies
            if copy.replica_id is not None and not copy.paused and copy.health is not PeerHealth.DEAD
        }:
            if not publish(SHIP_TASK, replica_id):
                self._stopped.wait(_BROKER_AWAY_S)
                _take_back(shard.shard_id)
                return


def _take_back(shard_id: int | None) -> None:
    try:
        if shard_id is not None:
            log.knock_clear(shard_id)
    except (DatabaseError, MLVectorDBError) as error:
        logger.warning("knock_not_taken_back error=%s", error)


_knocker: Knocker | None = None
_lock = threading.Lock()


def _knocker_of_this_process() -> Knocker:
    global _knocker
    with _lock:
        if _knocker is None or _knocker.process != os.getpid():
            _knocker = Knocker()
        return _knocker


def reset() -> None:
    """End this process's thread (tests)."""
    global _knocker
    with _lock:
        current, _knocker = _knocker, None
    if current is not None and current.process == os.getpid():
        current.stop()


def _forget_after_fork() -> None:
    global _knocker, _lock
    # The lock may have been held by a thread that does not exist in the child.
    _knocker, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
