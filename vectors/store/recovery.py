"""Opening a shard copy: map the segments of its manifest, replay the log after it.

Preconditions: none; any process may do this at any time. Steps: read the head; map each segment, checking its files;
apply the entries after the manifest's seq. A file or record that fails its checksum is left out, with every record
behind a torn one, and noted as damage: the rest is served read-only and says what is lost. An index that cannot be
used is no damage: nothing but speed is lost, the segment answers exactly. Afterwards the engine is the state at
`engine.seq`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.conf import settings

from vectors.engine.filters import ColumnBudget
from vectors.engine.index import SegmentIndex
from vectors.engine.namespace import NamespaceEngine
from vectors.engine.parts import FrozenPart
from vectors.engine.shard import ShardEngine
from vectors.errors import CorruptRecord, CorruptSegment, LogGap, WrongNode
from vectors.models import Manifest, ShardHead
from vectors.store import log
from vectors.store.column_files import open_columns_of
from vectors.store.faults import storage_faults
from vectors.store.index_files import IndexFault, note_index_faults, open_index_of
from vectors.store.manifests import ManifestRecord, read_manifest, segment_directory
from vectors.store.segment_files import CheckedFiles, SegmentRecord, open_segment, read_deleted
from vectors.store.slot_rows import slots_at

logger = logging.getLogger(__name__)

_ATTEMPTS = 5


@dataclass(slots=True)
class Progress:
    """How far an opening is, in bytes: of segment files and of log payloads."""

    total: int = 0
    done: int = 0

    def add(self, count: int) -> None:
        """Note bytes that were read."""
        self.done += count

    @property
    def percent(self) -> float:
        """0 to 100."""
        return 100.0 if self.total == 0 else min(100.0, 100.0 * self.done / self.total)


@dataclass(slots=True)
class OpenShard:
    """An engine with the manifest and incarnation it stands on, and what could not be read.

    `index_faults` says of segments, by uid, why their index is not used: they answer exactly.
    """

    head: log.Head
    manifest: ManifestRecord
    engine: ShardEngine
    damage: dict[str, Any] = field(default_factory=dict)
    log_bytes: int = 0
    index_faults: dict[str, IndexFault] = field(default_factory=dict)

    @property
    def parts(self) -> Mapping[str, FrozenPart]:
        """The mapped segments by uid."""
        return {part.uid: part for namespace in self.engine.namespaces() for part in namespace.frozen}


@storage_faults()
def check_node(shard_id: int) -> None:
    """Raise WrongNode when another node made a shard copy; to open it here would report its segments as lost."""
    node = ShardHead.objects.filter(pk=shard_id).values_list("node", flat=True).first()
    if node not in (None, settings.MLVDB_NODE_ID):
        raise WrongNode(
            f"the database belongs to node {node}, whose data dir has the segments; this node is"
            f" {settings.MLVDB_NODE_ID} and needs a database of its own",
            detail={"node": node},
        )


@storage_faults()
def open_shard(
    shard_id: int,
    *,
    budget: ColumnBudget | None = None,
    progress: Progress | None = None,
    replay: bool = True,
    known: OpenShard | None = None,
    checked: CheckedFiles | None = None,
) -> OpenShard:
    """Open a shard copy. Segments that `known` has open already are not read again.

    `checked` is for background work that serves nobody: files it has checked before are not read, and no index is
    opened. Raise LogGap when checkpoints keep overtaking the attempt (a state worth a retry), WrongNode, and
    StorageError and the like.
    """
    check_node(shard_id)
    segments = _Segments(known, budget=budget, progress=progress, checked=checked)
    for _attempt in range(_ATTEMPTS):
        head = log.read_head(shard_id)
        if head is None:
            raise LogGap(f"shard copy {shard_id} is not on this node")
        try:
            with storage_faults():
                opened = _open(head, segments, budget=budget, progress=progress)
                if replay:
                    catch_up(opened, progress=progress)
                return opened
        except (Manifest.DoesNotExist, LogGap):
            # A newer checkpoint removed the manifest, files or entries this attempt was reading: take that one.
            continue
    raise LogGap(f"checkpoints of shard copy {shard_id} overtook {_ATTEMPTS} attempts to open it")


def catch_up(opened: OpenShard, *, progress: Progress | None = None, through: int | None = None) -> None:
    """Apply the log up to `through` (the head of now when None) to an opened shard.

    Raise LogGap when entries in between are gone. A corrupt record becomes damage and ends the catching up.
    """
    if "log" in opened.damage:
        return
    engine = opened.engine
    if through is None:
        head = log.read_head(opened.head.shard_id)
        if head is None or head.incarnation != opened.head.incarnation:
            raise LogGap(f"the log of shard copy {opened.head.shard_id} was refilled")
        through = head.last_seq
    try:
        for entry in log.read_after(opened.head.shard_id, engine.seq, through=through):
            engine.apply(seq=entry.seq, term=entry.term, namespace=entry.namespace, operation=entry.operation())
            opened.log_bytes += len(entry.payload)
            if progress is not None:
                progress.add(len(entry.payload))
    except CorruptRecord as error:
        note_damage(opened, "log", {"seq": error.seq, "last_seq": through, "reason": error.message})
        return
    if engine.seq < through:
        raise LogGap(f"the log of shard copy {opened.head.shard_id} ends at {engine.seq} instead of {through}")


class Exchange:
    """Another manifest of the same seq for an opened shard, as merges make them: other segments, the same tail."""

    def __init__(
        self,
        opened: OpenShard,
        head: log.Head,
        manifest: ManifestRecord,
        frozen: Mapping[str, Sequence[FrozenPart]],
        faults: dict[str, IndexFault],
    ) -> None:
        self._opened, self._head, self._manifest = opened, head, manifest
        self._frozen, self._faults = frozen, faults

    def apply(self) -> bool:
        """Put the shard on the manifest; nobody applies entries meanwhile. Return False when it has to be opened anew.

        Then some namespaces may stand on the new segments and some on the old: they hold the same rows.
        """
        opened = self._opened
        with opened.engine.lock:
            for namespace in opened.engine.namespaces():
                frozen = self._frozen.get(namespace.spec.uid)
                if frozen is not None and not namespace.exchange(frozen):
                    return False
            opened.head, opened.manifest, opened.index_faults = self._head, self._manifest, self._faults
        return True


def exchange_prepare(opened: OpenShard, head: log.Head) -> Exchange | None:
    """Map what is new under a manifest of the same seq as the one that a shard stands on; the shard stays as it is.

    None when `head` is on a manifest of another seq, or on one that is gone or cannot be read whole: then the shard is
    to be opened anew. So a merge costs a process that serves neither a replay of its tail nor a second one in memory.
    """
    if head.incarnation != opened.head.incarnation or head.manifest_seq != opened.manifest.seq or opened.damage:
        return None
    parts = opened.parts
    known = {record.uid: record for space in opened.manifest.namespaces.values() for record in space.segments}
    segments = _Segments(None, budget=opened.engine.budget, progress=None, checked=None)
    frozen: dict[str, list[FrozenPart]] = {}
    faults: dict[str, IndexFault] = {}
    try:
        with storage_faults():
            manifest = read_manifest(head.shard_id, head.manifest)
            for uid, space in manifest.namespaces.items():
                directory = segment_directory(head.uid, uid)
                frozen[uid] = []
                for record in space.segments:
                    part, before = parts.get(record.uid), known.get(record.uid)
                    fault = opened.index_faults.get(record.uid)
                    if part is None or before is None or before.files != record.files:
                        part, fault = segments.open(directory / record.uid, record)
                    elif before.index != record.index or fault is not None:
                        part.index, fault = open_index_of(directory / record.uid, record)
                    frozen[uid].append(part)
                    if fault is not None:
                        faults[record.uid] = fault
    except (CorruptSegment, Manifest.DoesNotExist):
        return None
    if faults:
        note_index_faults(head.shard_id, manifest, faults)
    return Exchange(opened, head, manifest, frozen, faults)


@storage_faults()
def note_damage(opened: OpenShard, what: str, found: Any) -> None:
    """Remember damage in the opened shard and on its head row, so that no process accepts writes on top of it."""
    opened.damage[what] = found
    logger.error("shard_damaged shard=%s what=%s found=%s", opened.head.label, what, found)
    # A copy that was refilled meanwhile is another one: what was found says nothing about it.
    same = ShardHead.objects.filter(pk=opened.head.shard_id, incarnation=opened.head.incarnation)
    same.filter(damage__isnull=True).update(damage=opened.damage)


class _Segments:
    """Opens segments, each of them once: what attempts before this one, or an engine before, have open is shared."""

    def __init__(
        self,
        known: OpenShard | None,
        *,
        budget: ColumnBudget | None,
        progress: Progress | None,
        checked: CheckedFiles | None,
    ) -> None:
        self._budget, self._progress, self._checked = budget, progress, checked
        self._known: dict[str, tuple[SegmentRecord, FrozenPart, IndexFault | None]] = {}
        if known is not None:
            parts = known.parts
            for namespace in known.manifest.namespaces.values():
                for record in namespace.segments:
                    if record.uid in parts:
                        self._known[record.uid] = (record, parts[record.uid], known.index_faults.get(record.uid))

    def open(self, directory: Path, record: SegmentRecord) -> tuple[FrozenPart, IndexFault | None]:
        """Return a part of its own over a segment, and what is wrong with its index. Raise CorruptSegment."""
        known = self._known.get(record.uid)
        progress = None if self._progress is None else self._progress.add
        if known is None or known[0].files != record.files:
            part = open_segment(directory, record, budget=self._budget, progress=progress, checked=self._checked)
            part.index, fault = self._open_index(directory, record)
            if self._checked is None:
                part.columns.stored = open_columns_of(directory, record, progress=progress)
        else:
            deleted = read_deleted(directory, record)
            index, fault = known[1].index, known[2]
            if known[0].index != record.index or fault is not None:
                index, fault = self._open_index(directory, record)
            part = known[1].again(deleted=deleted, index=index)
            if progress is not None:
                progress(record.size_bytes)
        self._known[record.uid] = (record, part, fault)
        return part, fault

    def _open_index(self, directory: Path, record: SegmentRecord) -> tuple[SegmentIndex | None, IndexFault | None]:
        if self._checked is not None:
            return None, None
        return open_index_of(directory, record, progress=None if self._progress is None else self._progress.add)


def _open(head: log.Head, segments: _Segments, *, budget: ColumnBudget | None, progress: Progress | None) -> OpenShard:
    try:
        manifest = read_manifest(head.shard_id, head.manifest)
    except CorruptSegment as error:
        lost_engine = ShardEngine(seq=head.last_seq, slots_epoch=_slots_epoch(head, head.last_seq), budget=budget)
        opened = OpenShard(head, ManifestRecord(number=head.manifest), lost_engine)
        note_damage(opened, "manifest", error.message)
        note_damage(opened, "log", {"seq": 0, "last_seq": head.last_seq, "reason": "no manifest to replay it on"})
        return opened
    if progress is not None:
        progress.total, progress.done = manifest.size_bytes + head.tail_bytes, 0
    engine = ShardEngine(
        term=manifest.term, seq=manifest.seq, slots_epoch=_slots_epoch(head, manifest.seq), budget=budget
    )
    opened = OpenShard(head, manifest, engine)
    lost = []
    for uid, record in manifest.namespaces.items():
        directory = segment_directory(head.uid, uid)
        parts = []
        for segment in record.segments:
            try:
                part, fault = segments.open(directory / segment.uid, segment)
            except CorruptSegment as error:
                current = log.read_head(head.shard_id)
                if current is None or current.manifest != head.manifest:
                    raise LogGap("a newer checkpoint removed the files") from error
                lost.append(
                    {
                        "namespace": record.spec.name,
                        "segment": segment.uid,
                        "rows": segment.rows,
                        "reason": error.message,
                    }
                )
                continue
            parts.append(part)
            if fault is not None:
                opened.index_faults[segment.uid] = fault
        engine.mount(NamespaceEngine(record.spec, frozen=parts, budget=budget))
    if lost:
        note_damage(opened, "segments", lost)
    if opened.index_faults:
        note_index_faults(head.shard_id, manifest, opened.index_faults)
    return opened


def _slots_epoch(head: log.Head, seq: int) -> int:
    """Return the epoch at which the slots were last changed up to `seq`: the entry that said so may be pruned."""
    change = slots_at(head.shard_id, seq) if head.slots_seq else None
    return 0 if change is None else change.epoch
