"""The offer of a full sync: one manifest of the sender, and how its log came there.

The sender pins the manifest while its files are read; the receiver asks for what it lacks of them. Whoever reads an
offer that came over the wire gets one whose names cannot leave their directory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from vectors.engine.distances import METRICS
from vectors.engine.slots import SlotSet
from vectors.errors import InvalidInput, LogGap, ShardDamaged
from vectors.names import checked_namespace
from vectors.store import log, pins
from vectors.store.column_files import without_bad_columns
from vectors.store.faults import storage_faults
from vectors.store.index_files import without_bad_index
from vectors.store.leases import Lease
from vectors.store.log import Position
from vectors.store.manifests import FORMAT as MANIFEST_FORMAT
from vectors.store.manifests import ManifestRecord, NamespaceRecord, read_manifest, segment_directory
from vectors.store.segment_files import FILE_NAMES, FileStamp, SegmentRecord, stamps_of
from vectors.store.slot_rows import SlotsChange, slots_at
from vectors.store.terms import TermStart, read_terms, term_at

FORMAT = 1
FORMAT_WITH_SLOTS = 2
"""Of an offer that says which slots may be written: a node that cannot keep to that must not take it."""

_ATTEMPTS = 5
_NAMESPACE_UID = re.compile(r"[0-9A-Za-z_-]{1,32}")
_SEGMENT_UID = re.compile(r"[0-9a-f]{32}")
_FILE_NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)+")
_DELETED_NAME = re.compile(r"deleted\.[0-9]{1,19}\.[0-9a-f]{1,16}\.npy")
_INDEX_NAME = re.compile(r"index\.[0-9]{1,19}\.[0-9a-f]{1,16}\.bin")
# What a sender says of an index is shown and carried on, and not looked into.
_MOST_SAID_BYTES = 4096


class Fence(NamedTuple):
    """What orders the offers of a shard: term of the sender, token of its lease, number of its manifest."""

    term: int
    token: int
    number: int


@dataclass(frozen=True)
class SyncOffer:
    """The state at `manifest`, offered by a sender whose log goes on to `head`, with the history `terms`.

    `lease` and `token` are those under which the sender works. `slots` says which slots may be written from a seq of
    the manifest on, None where nothing was ever said of them; later entries are in the log.
    """

    shard: str
    manifest: ManifestRecord
    terms: Sequence[TermStart]
    head: Position
    lease: str
    token: int
    slots: SlotsChange | None = None

    @property
    def number(self) -> int:
        """Number of the manifest at its sender."""
        return self.manifest.number

    @property
    def seq(self) -> int:
        """Operations up to this seq are in the files."""
        return self.manifest.seq

    @property
    def term(self) -> int:
        """Term of the operation at `seq`."""
        return self.manifest.term

    @property
    def fence(self) -> Fence:
        """Offers with a lower one are those of a sender that has been replaced."""
        return Fence(self.head.term, self.token, self.number)

    @property
    def identity(self) -> list[str | int]:
        """What tells this offer from all others of its shard, as JSON types."""
        return [self.lease, *self.fence]

    def outranks(self, other: SyncOffer) -> bool:
        """Whether the sender of `other` has been replaced by this one's.

        Tokens are compared within one lease: a replica that is registered anew is sent to under another.
        """
        if self.lease != other.lease:
            return self.head.term > other.head.term
        return self.fence > other.fence

    @cached_property
    def files(self) -> Mapping[str, FileStamp]:
        """Size and checksum of every file by its path, `<namespace uid>/<segment uid>/<file>`."""
        files = {}
        for uid, record in self.manifest.namespaces.items():
            for segment in record.segments:
                for name, stamp in stamps_of(segment).items():
                    files[f"{uid}/{segment.uid}/{name}"] = stamp
        return files

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(stamp.size for stamp in self.files.values())

    @cached_property
    def rows(self) -> int:
        """Living rows in the files."""
        segments = (segment for record in self.manifest.namespaces.values() for segment in record.segments)
        return sum(segment.rows - segment.deleted_rows for segment in segments)

    def to_document(self) -> dict[str, Any]:
        """Return it as JSON types."""
        slots = self.slots
        return {
            "format": FORMAT if slots is None else FORMAT_WITH_SLOTS,
            "slots": None if slots is None else [slots.seq, slots.epoch, slots.writable.hex()],
            "shard": self.shard,
            "number": self.number,
            "seq": self.seq,
            "term": self.term,
            "manifest": self.manifest.to_document(),
            "terms": [list(start) for start in self.terms],
            "head": list(self.head),
            "lease": self.lease,
            "token": self.token,
            "bytes": self.size_bytes,
            "rows": self.rows,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> SyncOffer:
        """Read `to_document`'s result. Raise InvalidInput for anything else."""
        try:
            expected = FORMAT if document.get("slots") is None else FORMAT_WITH_SLOTS
            if document["format"] != expected or document["manifest"]["format"] != MANIFEST_FORMAT:
                raise InvalidInput("the offer is of another format than this node's", field="format")
            manifest = ManifestRecord.from_document(
                document["manifest"], number=document["number"], seq=document["seq"], term=document["term"]
            )
            offer = cls(
                document["shard"],
                manifest,
                [TermStart(*start) for start in document["terms"]],
                Position(*document["head"]),
                document["lease"],
                document["token"],
                _slots_of(document.get("slots")),
            )
            _check(offer)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidInput(f"this is no offer of a full sync: {error!r}", field="offer") from error
        return offer


@storage_faults()
def offer_make(shard_id: int, lease: Lease) -> SyncOffer:
    """Return an offer of the present manifest to whom the holder of `lease` sends.

    Its files and the entries after them are pinned under the lease's name: the sender beats that pin while it sends
    and drops it at the end. Raise ShardDamaged: damage is not handed on; and StorageError and the like.
    """
    for _attempt in range(_ATTEMPTS):
        head = log.read_head(shard_id)
        if head is None:
            raise LogGap(f"shard copy {shard_id} is not on this node")
        if head.damage is not None:
            raise ShardDamaged(f"shard {head.label} has lost data; it is no source", detail={"shard": head.label})
        try:
            pins.pin_set(shard_id, lease.name, head.manifest_seq, head.manifest)
        except LogGap:
            # A checkpoint came between: take its manifest.
            continue
        # A term that began since the head was read is no part of this history.
        terms = [start for start in read_terms(shard_id) if start.first_seq <= max(head.last_seq, 1)]
        manifest = _without_bad_extras(head.uid, read_manifest(shard_id, head.manifest))
        slots = slots_at(shard_id, manifest.seq)
        return SyncOffer(head.uid, manifest, terms, head.position, lease.name, lease.token, slots)
    raise LogGap(f"checkpoints of shard copy {shard_id} overtook {_ATTEMPTS} attempts to offer it")


def file_path(shard_uid: str, path: str) -> Path:
    """Return where the sender has a file of an offer. Raise InvalidInput for what is no such path."""
    return segment_directory(shard_uid, "") / checked_path(path)


def checked_path(path: str) -> str:
    """Return a file's path as offers have them; raise InvalidInput for any other."""
    uid, _, rest = path.partition("/")
    segment, _, name = rest.partition("/")
    if not (_NAMESPACE_UID.fullmatch(uid) and _SEGMENT_UID.fullmatch(segment) and _FILE_NAME.fullmatch(name)):
        raise InvalidInput("this is no file of a segment", field="path")
    return path


def _without_bad_extras(shard_uid: str, manifest: ManifestRecord) -> ManifestRecord:
    """Return what a manifest lists without columns and indexes that are no good: a receiver would ask for them for
    ever."""
    namespaces = {}
    for uid, record in manifest.namespaces.items():
        directory = segment_directory(shard_uid, uid)
        segments = [
            without_bad_index(directory / segment.uid, without_bad_columns(directory / segment.uid, segment))
            for segment in record.segments
        ]
        namespaces[uid] = NamespaceRecord(record.spec, segments)
    return ManifestRecord(manifest.number, manifest.seq, manifest.term, namespaces)


def _slots_of(part: Any) -> SlotsChange | None:
    if part is None:
        return None
    seq, epoch, writable = part
    return SlotsChange(seq, epoch, SlotSet(bytes.fromhex(writable)).packed)


def _check(offer: SyncOffer) -> None:
    numbers = [offer.number, offer.seq, offer.term, offer.token, *offer.head]
    numbers += [number for start in offer.terms for number in start]
    if offer.slots is not None:
        numbers += offer.slots[:2]
    if type(offer.lease) is not str or not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
        raise ValueError("a number is out of range")
    if not _SEGMENT_UID.fullmatch(offer.shard) or offer.head.seq < offer.seq or offer.head.term < offer.term:
        raise ValueError("shard or position")
    if offer.slots is not None and not 0 < offer.slots.seq <= offer.seq:
        raise ValueError("slots of another seq than the manifest's")
    if (
        not offer.terms
        or offer.terms[0].first_seq != 1
        or any(left.term >= right.term or left.first_seq >= right.first_seq for left, right in pairwise(offer.terms))
    ):
        raise ValueError("terms are not in order")
    for position in (Position(offer.term, offer.seq), offer.head):
        if position.seq and term_at(offer.terms, position.seq) != position.term:
            raise ValueError("a position is not of the history")
    for uid, record in offer.manifest.namespaces.items():
        spec = record.spec
        checked_namespace(spec.name)
        if not _NAMESPACE_UID.fullmatch(uid) or spec.metric not in METRICS or spec.dimension < 1:
            raise ValueError(f"namespace {uid}")
        for segment in record.segments:
            _check_segment(segment, dimension=spec.dimension)


def _check_segment(segment: SegmentRecord, *, dimension: int) -> None:
    if not _SEGMENT_UID.fullmatch(segment.uid) or segment.dimension != dimension or segment.rows < 1:
        raise ValueError(f"segment {segment.uid}")
    if not set(segment.files) >= FILE_NAMES or not 0 <= segment.deleted_rows <= segment.rows:
        raise ValueError(f"files of segment {segment.uid}")
    if segment.deleted is not None and not _DELETED_NAME.fullmatch(segment.deleted):
        raise ValueError(f"deletions of segment {segment.uid}")
    if segment.index is not None and not _INDEX_NAME.fullmatch(segment.index.name):
        raise ValueError(f"index of segment {segment.uid}")
    for said in (segment.unindexed, None if segment.index is None else segment.index.summary):
        if said is not None and not _is_said_of_index(said):
            raise ValueError(f"what is said of the index of segment {segment.uid}")
    for name, stamp in stamps_of(segment).items():
        if not _FILE_NAME.fullmatch(name) or not 0 < stamp.size < 1 << 63 or not 0 <= stamp.crc32 < 1 << 32:
            raise ValueError(f"file {name} of segment {segment.uid}")


def _is_said_of_index(said: Any) -> bool:
    """Whether it is of the form that planning and pages rely on."""
    if not isinstance(said, Mapping) or len(orjson.dumps(said)) > _MOST_SAID_BYTES:
        return False
    numbers = (said.get("recall_target"), said.get("recall", 1.0))
    return all(isinstance(number, int | float) and 0 <= number <= 1 for number in numbers)
