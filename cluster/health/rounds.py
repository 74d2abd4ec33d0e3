"""A health round: every replica is probed, all at once, and what the answers mean is written down.

Beat starts a round at an interval that the admin can change. Within a round a probe that failed is repeated, and so is
the first good one of a dead node, until the detector is certain: so a death is known within one interval + 3 s. Probes
run in threads, which only talk to peers; what they find is written by the round's own thread. Rounds may overlap and
beats may be two: every sample is written by compare-and-set, and more samples do no harm.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from django.conf import settings
from django.db import DatabaseError

from cluster.health.consequences import heed
from cluster.health.detector import detect, is_settled
from cluster.health.probe import Probe, Question, probe
from cluster.health.samples import check_of, detection_of, history_write, probing, sample_record
from cluster.models import HealthCheck, Replica
from cluster.services.candidates import host_now
from cluster.topology import topology
from vectors.errors import MLVectorDBError
from vectors.models import ShardHead

logger = logging.getLogger(__name__)

REPEAT_EVERY_S = 0.9
"""From one sample of a node to the next within a round: three of them, each up to MLVDB_PROBE_TIMEOUT_S, take 2.6 s."""

_AT_ONCE = 64


class _Sample(NamedTuple):
    replica: Replica
    probe: Probe


class Round:
    """One round. The clock and the pause are attributes, for tests."""

    timer: Callable[[], float] = staticmethod(time.monotonic)
    pause: Callable[[float], None] = staticmethod(time.sleep)

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = replicas
        self._question = question_now()
        self._samples: queue.SimpleQueue[_Sample | None] = queue.SimpleQueue()

    def run(self) -> None:
        """Probe, write, and return when every peer is settled."""
        if not self._replicas:
            return
        checks: list[HealthCheck] = []
        with ThreadPoolExecutor(min(_AT_ONCE, len(self._replicas)), thread_name_prefix="probe") as pool:
            for replica in self._replicas:
                pool.submit(self._watch, replica)
            for _ in self._replicas:
                while (sample := self._samples.get()) is not None:
                    checks += _record(sample.replica, sample.probe, self._question)
        history_write(checks)

    def _watch(self, replica: Replica) -> None:
        """Take samples of one peer until they are certain."""
        try:
            detection = detection_of(replica)
            while True:
                began = self.timer()
                found = _probe(replica, self._question)
                self._samples.put(_Sample(replica, found))
                detection = detect(detection, ok=found.ok)
                if is_settled(detection, ok=found.ok):
                    return
                self.pause(max(0.0, REPEAT_EVERY_S - (self.timer() - began)))
        except Exception:
            logger.exception("probe_failed replica=%s", replica.name)
        finally:
            self._samples.put(None)


def run_round() -> None:
    """Probe all replicas of this node's registry; a node without any does nothing."""
    Round(list(Replica.objects.all())).run()


def probe_now(replicas: Sequence[Replica]) -> dict[str, bool]:
    """Probe some replicas once, at once, and return {name: whether it answered as it should}; each is a sample."""
    if not replicas:
        return {}
    question = question_now()
    checks: list[HealthCheck] = []
    answered: dict[str, bool] = {}
    with ThreadPoolExecutor(min(_AT_ONCE, len(replicas)), thread_name_prefix="probe") as pool:
        for replica, found in zip(replicas, pool.map(lambda replica: _probe(replica, question), replicas), strict=True):
            answered[replica.name] = found.ok
            checks += _record(replica, found, question)
    history_write(checks)
    return answered


def _probe(replica: Replica, question: Question) -> Probe:
    with probing():
        return probe(
            replica.url,
            question,
            name=replica.name,
            expected_node=replica.node,
            timeout_s=settings.MLVDB_PROBE_TIMEOUT_S,
        )


def _record(replica: Replica, found: Probe, question: Question) -> list[HealthCheck]:
    """Write what a probe has found; return its history row, none when the replica is gone."""
    change = sample_record(replica.pk, ok=found.ok, error=found.error)
    if change is None:
        return []
    try:
        heed(replica, found, question)
    except (DatabaseError, MLVectorDBError) as error:
        # The other peers' samples must be written all the same; the next round sees the same answer again.
        logger.warning("answer_not_heeded replica=%s error=%s", replica.name, error)
    return [check_of(replica.pk, found, change)]


def question_now() -> Question:
    """Return what peers are asked now: it tells them where the logs of this node's shards end."""
    now = topology()
    heads = ShardHead.objects.filter(is_primary=True).values_list("uid", "term", "last_seq")
    return Question(
        host=host_now(now.cluster),
        epoch=now.epoch,
        heads={uid: (term, seq) for uid, term, seq in heads},
    )
