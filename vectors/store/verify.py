"""Checks that a shard copy on disk is what it says: checksums, a log without gaps, an engine that follows from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from django.db.models import Sum
from django.db.models.functions import Length

from vectors.engine import ids
from vectors.engine.digest import view_digest
from vectors.engine.distances import squared_norms
from vectors.engine.namespace import NamespaceEngine
from vectors.engine.operations import SetSlots, StartTerm
from vectors.engine.parts import FrozenPart
from vectors.errors import CorruptRecord, CorruptSegment
from vectors.models import LogEntry, Manifest, Namespace, ShardHead
from vectors.store import log, recovery
from vectors.store.column_files import columns_fault
from vectors.store.index_files import open_index_of
from vectors.store.log import START
from vectors.store.manifests import read_manifest, segment_directory
from vectors.store.segment_files import COLUMNS_FILE, SegmentRecord, check_file, stamps_of
from vectors.store.slot_rows import SlotsChange, slots_changes
from vectors.store.terms import History, TermStart, read_terms, term_at

_CHUNK_ROWS = 8192
_ATTEMPTS = 4


@dataclass(slots=True)
class Verification:
    """What was looked at, and what is wrong (empty when all is well). `digests`: rows and digest per namespace.

    `notes` are of what costs time alone: indexes and columns that cannot be used.
    """

    shard: str
    seq: int
    entries: int = 0
    files: int = 0
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    digests: dict[str, tuple[int, str]] = field(default_factory=dict)


def verify_shard(head: ShardHead, *, tell: Callable[[str], None] = lambda line: None) -> Verification:
    """Check one shard copy, reading everything; changes nothing and may run beside a serving node.

    What it finds while a checkpoint, a cut or a promotion changes the copy is looked at again. Raise WrongNode, and
    StorageError and the like.
    """
    recovery.check_node(head.pk)
    for _attempt in range(_ATTEMPTS):
        result, seen = _verify(head, tell)
        now = log.read_head(head.pk)
        if not result.findings or now is None or _shape(now) == _shape(seen):
            break
    return result


def _shape(head: log.Head) -> tuple[int, ...]:
    """Return what only something else than an append changes."""
    return head.manifest, head.incarnation, head.term


def _verify(head: ShardHead, tell: Callable[[str], None]) -> tuple[Verification, log.Head]:
    current = log.read_head(head.pk)
    assert current is not None
    result = Verification(current.label, current.last_seq)
    tell(f"{current.label}: log up to seq {current.last_seq}, manifest {current.manifest}")
    if current.damage is not None:
        result.findings.append(f"marked as damaged: {current.damage}")
    history = read_terms(head.pk)
    result.findings.extend(_check_terms(current, history))
    result.findings.extend(_check_log(current, history, result))
    result.findings.extend(_check_files(current, result))
    if result.findings:
        return result, current
    opened = recovery.open_shard(head.pk)
    tell(f"{current.label}: {result.entries} log entries and {result.files} files are intact")
    for namespace in opened.engine.namespaces():
        result.findings.extend(_check_namespace(namespace))
        result.digests[namespace.spec.name] = view_digest(namespace.view())
    result.findings.extend(_check_registry(head, opened))
    return result, current


def _check_terms(head: log.Head, history: History) -> Iterator[str]:
    for start, later in pairwise(history):
        if start.term >= later.term or start.first_seq >= later.first_seq:
            yield f"term {later.term} from seq {later.first_seq} does not follow term {start.term}"
    if head.last_seq and history[-1].first_seq > head.last_seq:
        yield f"term {history[-1].term} begins at seq {history[-1].first_seq}, behind the end of the log"
    if head.term != term_at(history, head.last_seq):
        yield f"the head is of term {head.term}, its last entry of term {term_at(history, head.last_seq)}"
    if head.promised_term < head.term:
        yield f"the head has promised term {head.promised_term} and is of term {head.term}"
    for seq, term in Manifest.objects.filter(shard_id=head.shard_id).values_list("seq", "term"):
        if seq and term != term_at(history, seq):
            yield f"the manifest of seq {seq} is of term {term}, the log there of term {term_at(history, seq)}"


def _check_log(head: log.Head, history: History, result: Verification) -> Iterator[str]:
    manifest_seq = head.manifest_seq
    starts = set(history)
    changes = {change.seq: change for change in slots_changes(head.shard_id, through=head.last_seq)}
    if max(changes, default=0) != head.slots_seq:
        yield f"the head has slots since seq {head.slots_seq}, the newest noted is of {max(changes, default=0)}"
    expected: int | None = None
    last_term = 0
    for entry in log.read_after(head.shard_id, 0, through=head.last_seq):
        if expected is not None and entry.seq != expected:
            yield f"log entries {expected} to {entry.seq - 1} are missing"
        if expected is None and entry.seq > manifest_seq + 1:
            yield f"log entries {manifest_seq + 1} to {entry.seq - 1} are missing"
        if entry.term < last_term or entry.term > head.term:
            yield f"log entry {entry.seq} has term {entry.term} out of order"
        elif entry.term != term_at(history, entry.seq):
            yield f"log entry {entry.seq} has term {entry.term}, by the terms noted {term_at(history, entry.seq)}"
        try:
            operation = entry.operation()
        except CorruptRecord as error:
            yield error.message
        else:
            before = term_at(history, entry.seq - 1)
            is_start = TermStart(entry.term, entry.seq) in starts and (entry.term, entry.seq) != (START.term, 1)
            if is_start != isinstance(operation, StartTerm):
                yield f"log entry {entry.seq} {'does not begin' if is_start else 'begins'} term {entry.term}"
            elif isinstance(operation, StartTerm) and operation.after != before:
                yield f"log entry {entry.seq} follows term {operation.after}, the log before it is of term {before}"
            said = SlotsChange(entry.seq, *astuple(operation)) if isinstance(operation, SetSlots) else None
            if changes.get(entry.seq) != said:
                yield f"log entry {entry.seq} says something else of writable slots than what is noted of it"
        expected, last_term = entry.seq + 1, entry.term
        result.entries += 1
    if (expected or manifest_seq + 1) <= head.last_seq:
        yield f"log entries {expected or manifest_seq + 1} to {head.last_seq} are missing"
    tail = LogEntry.objects.filter(shard_id=head.shard_id, seq__gt=manifest_seq, seq__lte=head.last_seq)
    tail_bytes = tail.aggregate(size=Sum(Length("payload")))["size"] or 0
    if tail_bytes != head.tail_bytes:
        now = log.read_head(head.shard_id)
        if now is not None and (now.last_seq, now.manifest) == (head.last_seq, head.manifest):
            yield f"the head counts {head.tail_bytes} bytes of tail, the log holds {tail_bytes}"


def _check_files(head: log.Head, result: Verification) -> Iterator[str]:
    try:
        manifest = read_manifest(head.shard_id, head.manifest)
    except (CorruptSegment, Manifest.DoesNotExist) as error:
        yield str(error)
        return
    for uid, record in manifest.namespaces.items():
        for segment in record.segments:
            directory = segment_directory(head.uid, uid) / segment.uid
            for name, stamp in stamps_of(segment).items():
                result.files += 1
                if segment.index is not None and name == segment.index.name:
                    result.notes.extend(_check_index(directory, segment, record.spec.name))
                    continue
                if name == COLUMNS_FILE:
                    result.notes.extend(_check_columns(directory, segment, record.spec.name))
                    continue
                try:
                    check_file(directory / name, stamp)
                except CorruptSegment as error:
                    yield f"namespace {record.spec.name}: {error.message}"


def _check_index(directory: Path, segment: SegmentRecord, namespace: str) -> Iterator[str]:
    _, fault = open_index_of(directory, segment)
    if fault is not None:
        yield (
            f"namespace {namespace}: segment {segment.uid} is searched without its index: {fault.reason}"
            + ("; the next merge makes it anew" if fault.is_of_file else "")
        )


def _check_columns(directory: Path, segment: SegmentRecord, namespace: str) -> Iterator[str]:
    fault = columns_fault(directory, segment)
    if fault is not None:
        yield f"namespace {namespace}: segment {segment.uid} is filtered without its columns: {fault}"


def _check_namespace(namespace: NamespaceEngine) -> Iterator[str]:
    name = namespace.spec.name
    seen: set[bytes] = set()
    for view in namespace.view().parts:
        part = view.part
        keys = part.keys[0 : view.rows]
        if isinstance(part, FrozenPart):
            if any(left >= right for left, right in pairwise(keys)):
                yield f"namespace {name}: the ids of segment {part.uid} are not in order"
            rows = part.find(keys, ids.hashes_of(keys))
            wrong = (rows != np.where(part.living, np.arange(len(keys)), -1)).sum()
            if wrong:
                yield f"namespace {name}: {wrong} ids of segment {part.uid} are not found by their hash"
        if not np.array_equal(ids.slots_of(keys), part.slots[: view.rows]):
            yield f"namespace {name}: slots do not follow from the ids"
        for start in range(0, view.rows, _CHUNK_ROWS):
            values = np.asarray(part.matrix[start : min(start + _CHUNK_ROWS, view.rows)])
            if not np.isfinite(values).all():
                yield f"namespace {name}: a value is not finite"
            if not np.allclose(squared_norms(values), part.squared_norms[start : start + len(values)], rtol=1e-6):
                yield f"namespace {name}: squared norms do not follow from the values"
        alive = keys if view.living is None else [keys[row] for row in np.flatnonzero(view.living).tolist()]
        twice = seen.intersection(alive)
        if twice:
            yield f"namespace {name}: {len(twice)} ids are alive in two places"
        seen.update(alive)


def _check_registry(head: ShardHead, opened: recovery.OpenShard) -> Iterator[str]:
    rows = {
        (row.name, row.uid, row.dimension, row.metric)
        for row in Namespace.objects.filter(shard=head, dropped_at__isnull=True)
    }
    engine = {
        (item.spec.name, item.spec.uid, item.spec.dimension, str(item.spec.metric))
        for item in opened.engine.namespaces()
    }
    now = log.read_head(head.pk)
    if rows != engine and now is not None and now.last_seq == opened.engine.seq:
        for name, uid, *_ in sorted(rows ^ engine):
            yield f"namespace {name} ({uid}) is not the same in the registry and in the log"
