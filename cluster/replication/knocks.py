"""Knocks: a write that finds nobody told of it tells the senders, in the background.

A knock is lost when the broker is down; then `knocked` is taken back, so that the next write tries again, and beat's
sweep knocks for whatever lags. It never delays a write: a thread of the process does the publishing.
"""

from __future__ import annotations

import logging
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

_BROKER_AWAY_S = 1.0
"""How long to wait with taking a knock back: while the broker is away, each would cost the next write a commit."""


def knock(shard_uid: str) -> None:
    """Have a ship task published for every replica of a shard, soon; returns at once and never raises."""
    _knocker_of_this_process().knock(shard_uid)


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

    def knock(self, shard_uid: str, *, checkpoint: bool = False) -> None:
        """Note that a shard has news, or a long tail, and see to it that the thread runs."""
        with self._changed:
            self._wanted.add((shard_uid, checkpoint))
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="knocks", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._wanted:
                    self._changed.wait()
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
                time.sleep(_BROKER_AWAY_S)
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


def _forget_after_fork() -> None:
    global _knocker, _lock
    # The lock may have been held by a thread that does not exist in the child.
    _knocker, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
