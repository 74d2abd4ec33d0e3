"""Merges: of the segments of a shard fewer and larger ones are made, and indexes for them, beside all other work.

Preconditions: the node's merge lock (one run at a time: it takes processors, memory and disk), then the shard's merge
lease. A step is planned from the newest manifest (`merge_plan`). Up to MLVDB_INDEX_THREADS steps are at work side by
side, about different segments each; what they have made is committed by one thread. Then, each safe to lose to a crash:
1. the sources are opened as the manifest lists them, without the log, and their living rows written as a new segment;
2. where a source had an index, the new one is built and written beside it: no row that had an index is ever without;
3. under the checkpoint lease, which is waited for: if the newest manifest still lists every source, what was deleted
   from them meanwhile is written as deletions of the new segment;
4. in one transaction, if both leases, manifest and incarnation still are what they were: the manifest that lists the
   new segment in place of its sources, of the same seq and term, and the head on it;
5. what no manifest lists any more is removed.
Afterwards every process opens the new segment and goes on. Files of a merge carry tokens of a range of their own, and
cleaners leave those of a merge that is at work alone. A full sync or the end of the namespace meanwhile makes a step
void: its files go.
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from django.conf import settings

from vectors.engine import index
from vectors.errors import CorruptSegment, MLVectorDBError, StorageBusy
from vectors.models import IndexRequest, Manifest, Namespace, ShardHead
from vectors.recall import requests
from vectors.recall.samples import sample_of
from vectors.store import leases, log, recovery
from vectors.store.faults import storage_faults
from vectors.store.file_lock import file_locked
from vectors.store.index_files import index_is_good
from vectors.store.manifests import ManifestRecord, read_manifest, segment_directory
from vectors.store.merge_commit import StepVoid, commit, newest
from vectors.store.merge_plan import Merging, Planner, Step, Tiers
from vectors.store.merge_steps import Making
from vectors.store.merge_works import Work, Works
from vectors.store.segment_files import SegmentRecord

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.1
_LOOK_FOR_MORE_S = 0.25
_ATTEMPTS = 5


@dataclass(slots=True)
class MergeResult:
    """What a run did. `indexed` are uids of namespaces that have new indexes; `is_done` is false when time was up."""

    shard: str
    merges: int = 0
    indexes: int = 0
    void: int = 0
    rows_written: int = 0
    bytes_written: int = 0
    took_s: float = 0.0
    is_done: bool = False
    indexed: set[str] = field(default_factory=set)

    @property
    def steps(self) -> int:
        """Steps that were committed."""
        return self.merges + self.indexes


def merge_due(head: ShardHead, *, indexing: bool | None = None) -> bool:
    """Whether there is something to merge or to index, now or at rest.

    `indexing` says whether indexes can be made, for a process that must not find that out itself.
    """
    if head.damage is not None:
        return False
    can_index = index.available() if indexing is None else indexing
    if can_index and (head.index_faults or requests.pending(head.pk)):
        return True
    try:
        manifest = read_manifest(head.pk, head.manifest)
    except (CorruptSegment, Manifest.DoesNotExist):
        return False
    return _planner(head.pk, indexing=can_index).next_step(manifest, rested=True) is not None


def merge_run(
    shard_uid: str,
    *,
    owner: str,
    stop: Callable[[], bool] = lambda: False,
    time_s: float = float("inf"),
    rest_s: float | None = None,
    tiers_alone: bool = False,
) -> MergeResult | None:
    """Merge and index one shard until nothing is to be done; None when another merge is at work on this node.

    No step is begun after `time_s` or once `stop` says so. When only what is done at rest is left, the log has to stay
    as it is for `rest_s` (MLVDB_MERGE_REST_S when None), which is waited for. With `tiers_alone` full tiers are merged
    and the rest is left: what a load in this process needs, where nobody searches. Raise ShardDamaged, WrongNode,
    StorageFull and the like; then the shard is as it was before the step that failed.
    """
    head = ShardHead.objects.get(uid=shard_uid)
    recovery.check_node(head.pk)
    with ExitStack() as held:
        try:
            held.enter_context(file_locked(settings.NODE_FILES.merge_lock, fcntl.LOCK_EX, timeout_s=0))
        except StorageBusy:
            return None
        held.enter_context(storage_faults())
        # Who holds the lock is alone: a lease that is still held is of a process that died.
        lease = held.enter_context(leases.seize_lease(leases.merge_lease(head.pk), owner))
        wait_s = settings.MLVDB_MERGE_REST_S if rest_s is None else rest_s
        return _Run(head, lease, rest_s=None if tiers_alone else wait_s, stop=stop).run(time_s)


class _Run:
    """One run over a shard, under its merge lease; with `rest_s` None of full tiers alone."""

    def __init__(self, head: ShardHead, lease: leases.Lease, *, rest_s: float | None, stop: Callable[[], bool]) -> None:
        self._head, self._lease, self._rest_s, self._stop = head, lease, rest_s, stop
        self._token = leases.merge_token(lease)
        self._result = MergeResult(head.label)
        self._rested_at: int | None = None
        self._wishes = requests.pending(head.pk)
        self._looked_at: dict[tuple[str, str], bool] = {}
        self._works = Works(settings.MLVDB_INDEX_THREADS)

    def run(self, time_s: float) -> MergeResult:
        """Do one step after the other, and side by side where they are about different segments."""
        started = time.monotonic()
        result, works = self._result, self._works
        try:
            while True:
                may_begin = not self._stop() and time.monotonic() - started < time_s
                if may_begin and works.have_room and self._begin():
                    continue
                work = works.take_ended(within_s=_LOOK_FOR_MORE_S)
                if work is not None:
                    self._end(work)
                elif not works.are_running:
                    result.is_done = may_begin
                    break
        finally:
            works.abandon()
        result.took_s = time.monotonic() - started
        return result

    # What is to be done.

    def _begin(self) -> bool:
        """Begin the next step; return false when there is none now."""
        for _attempt in range(_ATTEMPTS):
            head, manifest = newest(self._head.pk)
            planner = self._planner(manifest)
            step = planner.next_step(manifest, rested=False, busy=self._works.busy)
            if step is None:
                if self._rest_s is None or self._works.are_running:
                    return False
                self._settle()
                step = planner.next_step(manifest, rested=True)
                if step is None or not self._rests(head, self._rest_s):
                    return False
                now = log.read_head(self._head.pk)
                if now is None or now.manifest != head.manifest:
                    # A checkpoint turned the rest of the tail into a segment meanwhile.
                    continue
            self._work_on(step, planner, manifest.number)
            return True
        return False

    def _planner(self, manifest: ManifestRecord) -> Planner:
        if self._rest_s is None:
            return _planner(self._head.pk, indexing=False)
        return _planner(self._head.pk, self._segments_anew(manifest))

    def _settle(self) -> None:
        """Take note that nothing is left to be indexed: what was wished for or found faulty is done, or cannot be."""
        requests.done(self._head.pk, self._wishes.values())
        self._wishes = {}
        shard = ShardHead.objects.filter(pk=self._head.pk)
        if index.available() and shard.values_list("index_faults", flat=True).first():
            shard.update(index_faults={})

    def _segments_anew(self, manifest: ManifestRecord) -> Collection[str]:
        """Return the segments that get another index: those wished for, and those whose file is no good."""
        faults: dict[str, dict[str, str]] = {}
        if index.available():
            faults = ShardHead.objects.values_list("index_faults", flat=True).get(pk=self._head.pk)
        return {
            segment.uid
            for namespace, record in manifest.namespaces.items()
            for segment in record.segments
            if self._is_wished_anew(namespace, segment) or self._is_faulty(namespace, segment, faults)
        }

    def _is_wished_anew(self, namespace: str, segment: SegmentRecord) -> bool:
        """Whether a wish is for a segment's index, and was not heeded in this run or in one before it."""
        wish = self._wishes.get(namespace)
        # A raised target is seen from what the indexes were tuned for.
        if wish is None or wish.reason == IndexRequest.Reason.TARGET or segment.wish >= wish.pk:
            return False
        return segment.index is not None or segment.unindexed is not None

    def _is_faulty(self, namespace: str, segment: SegmentRecord, faults: dict[str, dict[str, str]]) -> bool:
        """Whether a segment's index, which a process could not use, is no good here either."""
        fault = faults.get(segment.uid)
        if fault is None or segment.index is None or fault["file"] != segment.index.name:
            return False
        is_good = self._looked_at.get((segment.uid, segment.index.name))
        if is_good is None:
            # What another process could not use may be good here: who opens it next sees that too.
            is_good = index_is_good(segment_directory(self._head.uid, namespace) / segment.uid, segment)
            self._looked_at[segment.uid, segment.index.name] = is_good
        return not is_good

    def _rests(self, head: log.Head, rest_s: float) -> bool:
        """Whether the log stays as it is for as long as it takes to be called at rest."""
        if self._rested_at == head.last_seq:
            return True
        until = time.monotonic() + rest_s
        while time.monotonic() < until:
            if self._stop():
                return False
            time.sleep(_LOOK_EVERY_S)
            now = log.read_head(head.shard_id)
            if now is None or now.last_seq != head.last_seq:
                return False
        self._rested_at = head.last_seq
        return True

    # Doing it.

    def _work_on(self, step: Step, planner: Planner, number: int) -> None:
        spec = step.spec
        wish = self._wishes.get(spec.uid)
        making = Making(
            segment_directory(self._head.uid, spec.uid),
            planner,
            self._token,
            number,
            None if self._rest_s is None else sample_of(spec.uid, spec.dimension),
            None if wish is None else wish.pk,
            self._works.threads,
        )
        self._works.begin(step, partial(making.make, step), now=time.monotonic())

    def _end(self, work: Work) -> None:
        """List what a step has made."""
        step = work.step
        try:
            try:
                made = work.result()
            except CorruptSegment as error:
                self._look_for_damage(step.segments, error)
                raise StepVoid("a source is not listed any more") from error
            try:
                commit(self._head.pk, self._lease, made)
            except (StepVoid, MLVectorDBError):
                made.discard()
                raise
        except StepVoid as reason:
            self._result.void += 1
            logger.info("merge_void shard=%s namespace=%s reason=%s", self._head.label, step.spec.uid, reason)
            return
        self._count(step, made.record, time.monotonic() - work.began)

    def _look_for_damage(self, sources: Sequence[SegmentRecord], error: CorruptSegment) -> None:
        """Return when segments could not be read because they are not listed any more; else raise what is wrong."""
        _, manifest = newest(self._head.pk)
        listed = {segment.uid: segment for record in manifest.namespaces.values() for segment in record.segments}
        if any(listed.get(source.uid) != source for source in sources):
            return
        # Opened as a server does, which looks at every byte and takes note of what is lost.
        recovery.open_shard(self._head.pk, replay=False)
        newest(self._head.pk)
        raise error

    def _count(self, step: Step, record: SegmentRecord | None, took_s: float) -> None:
        result = self._result
        index_record = None if record is None else record.index
        if index_record is not None:
            result.indexed.add(step.spec.uid)
        if isinstance(step, Merging):
            result.merges += 1
            what, sources, rows = "merged", len(step.sources), 0 if record is None else record.rows
            size = 0 if record is None else record.size_bytes
        else:
            result.indexes += 1
            what, sources, rows = "indexed", 1, 0
            size = 0 if index_record is None else index_record.stamp.size
        result.rows_written += rows
        result.bytes_written += size
        logger.info(
            "%s shard=%s namespace=%s segments=%d rows=%d bytes=%d index=%s took_s=%.3f",
            what,
            self._head.label,
            step.spec.uid,
            sources,
            0 if record is None else record.rows,
            size,
            None if index_record is None else index_record.summary.get("recall"),
            took_s,
        )


def _planner(shard_id: int, anew: Collection[str] = (), *, indexing: bool | None = None) -> Planner:
    alive = Namespace.objects.filter(shard_id=shard_id, dropped_at__isnull=True)
    return Planner(
        Tiers(settings.MLVDB_SEGMENT_TIER, settings.MLVDB_SEGMENT_MAX_BYTES),
        settings.MLVDB_INDEX_MIN_ROWS,
        dict(alive.values_list("uid", "recall_target")),
        anew,
        index.available() if indexing is None else indexing,
    )
