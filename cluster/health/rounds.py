"""A health round: every replica, or every shard's node, is probed, all at once, and what the answers mean is written.

Beat starts a round at an interval that the admin can change. Within a round a probe that failed is repeated, and so is
the first good one of a dead node, until the detector is certain: so a death is known within one interval + 3 s. Probes
run in threads, which only talk to peers; what they find is written by the round's own thread. Rounds may overlap and
beats may be two: every sample is written by compare-and-set, and more samples do no harm.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

from django.conf import settings
from django.db import DatabaseError

from cluster.health.consequences import heed
from cluster.health.detector import detect, is_settled
from cluster.health.probe import Probe, Question, probe
from cluster.health.samples import check_of, detection_of, history_write, probing, sample_record
from cluster.models import HealthCheck, Replica, Shard
from cluster.services.candidates import check_candidate, host_now
from cluster.topology import topology
from vectors.errors import MLVectorDBError
from vectors.models import ShardHead

logger = logging.getLogger(__name__)

REPEAT_EVERY_S = 0.9
"""From one sample of a node to the next within a round: three of them, each up to MLVDB_PROBE_TIMEOUT_S, take 2.6 s."""

_AT_ONCE = 64


class Patient(Protocol):
    """A peer whose health is looked after: how it is probed, and what an answer of it means besides."""

    @property
    def row(self) -> Replica | Shard:
        """Its row as it was read."""

    def probe(self) -> Probe:
        """Ask it how it is; touches no row."""

    def heed(self, found: Probe) -> None:
        """Act on what it said."""


class ReplicaPatient:
    """A replica of this node."""

    def __init__(self, row: Replica, question: Question) -> None:
        self.row = row
        self._question = question

    def probe(self) -> Probe:
        """Ask it how it is."""
        return probe(
            self.row.url,
            self._question.body,
            check=lambda status: check_candidate(
                self._question.host, self.row.url, status, name=self.row.name, expected_node=self.row.node
            ),
            timeout_s=settings.MLVDB_PROBE_TIMEOUT_S,
        )

    def heed(self, found: Probe) -> None:
        """Act on what it said."""
        heed(self.row, found, self._question)


class _Sample(NamedTuple):
    patient: Patient
    probe: Probe


class Round:
    """One round. The clock and the pause are attributes, for tests."""

    timer: Callable[[], float] = staticmethod(time.monotonic)
    pause: Callable[[float], None] = staticmethod(time.sleep)

    def __init__(self, patients: Sequence[Patient]) -> None:
        self._patients = patients
        self._samples: queue.SimpleQueue[_Sample | None] = queue.SimpleQueue()

    def run(self) -> None:
        """Probe, write, and return when every peer is settled."""
        if not self._patients:
            return
        checks: list[HealthCheck] = []
        with ThreadPoolExecutor(min(_AT_ONCE, len(self._patients)), thread_name_prefix="probe") as pool:
            for patient in self._patients:
                pool.submit(self._watch, patient)
            for _ in self._patients:
                while (sample := self._samples.get()) is not None:
                    checks += _record(sample.patient, sample.probe)
        history_write(checks)

    def _watch(self, patient: Patient) -> None:
        """Take samples of one peer until they are certain."""
        try:
            detection = detection_of(patient.row)
            while True:
                began = self.timer()
                found = _probe(patient)
                self._samples.put(_Sample(patient, found))
                detection = detect(detection, ok=found.ok)
                if is_settled(detection, ok=found.ok):
                    return
                self.pause(max(0.0, REPEAT_EVERY_S - (self.timer() - began)))
        except Exception:
            logger.exception("probe_failed peer=%s", patient.row)
        finally:
            self._samples.put(None)


def run_round() -> None:
    """Probe all replicas of this node's registry; a node without any does nothing."""
    Round(_patients(Replica.objects.all())).run()


def probe_now(replicas: Sequence[Replica]) -> dict[str, bool]:
    """Probe some replicas once, at once, and return {name: whether it answered as it should}; each is a sample."""
    return probe_each(_patients(replicas))


def probe_each(patients: Sequence[Patient]) -> dict[str, bool]:
    """Probe some peers once, at once, and return {name: whether it answered as it should}; each is a sample."""
    if not patients:
        return {}
    checks: list[HealthCheck] = []
    answered: dict[str, bool] = {}
    with ThreadPoolExecutor(min(_AT_ONCE, len(patients)), thread_name_prefix="probe") as pool:
        for patient, found in zip(patients, pool.map(_probe, patients), strict=True):
            answered[str(patient.row)] = found.ok
            checks += _record(patient, found)
    history_write(checks)
    return answered


def _patients(replicas: Iterable[Replica]) -> list[ReplicaPatient]:
    rows = list(replicas)
    if not rows:
        return []
    question = question_now()
    return [ReplicaPatient(row, question) for row in rows]


def _probe(patient: Patient) -> Probe:
    with probing():
        return patient.probe()


def _record(patient: Patient, found: Probe) -> list[HealthCheck]:
    """Write what a probe has found; return its history row, none when the peer is gone."""
    row = patient.row
    change = sample_record(row.pk, ok=found.ok, error=found.error, kind=type(row), url=row.url)
    if change is None:
        return []
    try:
        patient.heed(found)
    except (DatabaseError, MLVectorDBError) as error:
        # The other peers' samples must be written all the same; the next round sees the same answer again.
        logger.warning("answer_not_heeded peer=%s error=%s", row, error)
    return [check_of(row, found, change)]


def question_now() -> Question:
    """Return what peers are asked now: it tells them where the logs of this node's shards end."""
    now = topology()
    heads = ShardHead.objects.filter(is_primary=True).values_list("uid", "term", "last_seq")
    return Question(
        host=host_now(now.cluster),
        epoch=now.epoch,
        heads={uid: (term, seq) for uid, term, seq in heads},
    )
