"""Opening a shard copy: map the segments of its manifest, replay the log after it.

Preconditions: none; any process may do this at any time. Steps: read the head; map each segment, checking its files;
apply the entries after the manifest's seq. A file or record that fails its checksum is left out, with every record
behind a torn one, and noted as damage: the rest is served read-only and says what is lost. Afterwards the engine is
the state at `engine.seq`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings

from vectors.engine.filters import ColumnBudget
from vectors.engine.namespace import NamespaceEngine
from vectors.engine.parts import FrozenPart
from vectors.engine.shard import ShardEngine
from vectors.errors import CorruptRecord, CorruptSegment, LogGap, WrongNode
from vectors.models import Manifest, ShardHead
from vectors.store import log
from vectors.store.faults import storage_faults
from vectors.store.manifests import ManifestRecord, read_manifest, segment_directory
from vectors.store.segment_files import open_segment
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
    """An engine with the manifest and incarnation it stands on, and what could not be read."""

    head: log.Head
    manifest: ManifestRecord
    engine: ShardEngine
    damage: dict[str, Any] = field(default_factory=dict)
    log_bytes: int = 0

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
    shard_id: int, *, budget: ColumnBudget | None = None, progress: Progress | None = None, replay: bool = True
) -> OpenShard:
    """Open a shard copy. Raise LogGap when checkpoints keep overtaking the attempt (a state worth a retry), WrongNode,
    and StorageError and the like."""
    check_node(shard_id)
    for _attempt in range(_ATTEMPTS):
        head = log.read_head(shard_id)
        if head is None:
            raise LogGap(f"shard copy {shard_id} is not on this node")
        try:
            with storage_faults():
                opened = _open(head, budget=budget, progress=progress)
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


@storage_faults()
def note_damage(opened: OpenShard, what: str, found: Any) -> None:
    """Remember damage in the opened shard and on its head row, so that no process accepts writes on top of it."""
    opened.damage[what] = found
    logger.error("shard_damaged shard=%s what=%s found=%s", opened.head.label, what, found)
    # A copy that was refilled meanwhile is another one: what was found says nothing about it.
    same = ShardHead.objects.filter(pk=opened.head.shard_id, incarnation=opened.head.incarnation)
    same.filter(damage__isnull=True).update(damage=opened.damage)


def _open(head: log.Head, *, budget: ColumnBudget | None, progress: Progress | None) -> OpenShard:
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
                parts.append(
                    open_segment(
                        directory / segment.uid,
                        segment,
                        budget=budget,
                        progress=None if progress is None else progress.add,
                    )
                )
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
        engine.mount(NamespaceEngine(record.spec, frozen=parts, budget=budget))
    if lost:
        note_damage(opened, "segments", lost)
    return opened


def _slots_epoch(head: log.Head, seq: int) -> int:
    """Return the epoch at which the slots were last changed up to `seq`: the entry that said so may be pruned."""
    change = slots_at(head.shard_id, seq) if head.slots_seq else None
    return 0 if change is None else change.epoch
