"""Manifests: which segments stand for a shard's operations up to a seq."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from django.conf import settings

from vectors.engine.distances import Metric
from vectors.engine.namespace import NamespaceSpec
from vectors.errors import CorruptSegment
from vectors.models import Manifest
from vectors.store.segment_files import SegmentRecord

FORMAT = 1


@dataclass(frozen=True, slots=True)
class NamespaceRecord:
    """A namespace and its segments, as a manifest lists them."""

    spec: NamespaceSpec
    segments: Sequence[SegmentRecord] = ()


@dataclass(frozen=True, slots=True)
class ManifestRecord:
    """A manifest, read and checked; number 0 is the empty state before the first one."""

    number: int = 0
    seq: int = 0
    term: int = 0
    namespaces: Mapping[str, NamespaceRecord] = field(default_factory=dict)

    def to_document(self) -> dict[str, Any]:
        """Return the namespaces as JSON types."""
        return {
            "format": FORMAT,
            "namespaces": {
                uid: {
                    "name": record.spec.name,
                    "dimension": record.spec.dimension,
                    "metric": record.spec.metric,
                    "recall_target": record.spec.recall_target,
                    "picture": record.spec.picture,
                    "segments": [segment.to_document() for segment in record.segments],
                }
                for uid, record in self.namespaces.items()
            },
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any], *, number: int, seq: int, term: int) -> ManifestRecord:
        """Read `to_document`'s result."""
        namespaces = {
            uid: NamespaceRecord(
                NamespaceSpec(
                    uid,
                    entry["name"],
                    entry["dimension"],
                    cast(Metric, entry["metric"]),
                    entry["recall_target"],
                    entry["picture"],
                ),
                [SegmentRecord.from_document(segment) for segment in entry["segments"]],
            )
            for uid, entry in document["namespaces"].items()
        }
        return cls(number, seq, term, namespaces)

    @property
    def size_bytes(self) -> int:
        """Bytes of all segment files."""
        return sum(segment.size_bytes for record in self.namespaces.values() for segment in record.segments)


def segment_directory(shard_uid: str, namespace_uid: str) -> Path:
    """Return the directory of a namespace's segments in one shard copy."""
    return settings.NODE_FILES.segments / shard_uid / namespace_uid


def document_crc32(document: Mapping[str, Any]) -> int:
    """Return the CRC-32 of a document's canonical JSON."""
    return zlib.crc32(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


def read_manifest(shard_id: int, number: int) -> ManifestRecord:
    """Return a manifest; raise Manifest.DoesNotExist, or CorruptSegment when its row is altered."""
    if number == 0:
        return ManifestRecord()
    row = Manifest.objects.get(shard_id=shard_id, number=number)
    if document_crc32(row.document) != row.crc32:
        raise CorruptSegment(f"the checksum of manifest {number} is wrong", detail={"manifest": number})
    if row.document["format"] != FORMAT:
        raise CorruptSegment(f"manifest {number} is of a newer format", detail={"manifest": number})
    return ManifestRecord.from_document(row.document, number=row.number, seq=row.seq, term=row.term)
