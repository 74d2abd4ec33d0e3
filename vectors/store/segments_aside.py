"""Segments of a copy that a full sync replaces although its primary does not have all their rows.

The entries of those rows are gone from the log, so the segments are what is left of them: their files stay as links in
a directory of their own, with the manifest that lists them, for a person.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import orjson
from django.conf import settings

from vectors.errors import CorruptSegment
from vectors.models import Manifest
from vectors.store.faults import storage_faults
from vectors.store.log import Head
from vectors.store.manifests import read_manifest, segment_directory
from vectors.store.segment_files import link_or_copy, make_directories, stamps_of, sync_directory

_MANIFEST = "manifest.json"


@storage_faults()
def segments_set_aside(head: Head) -> Path | None:
    """Keep the segment files of a copy as it is; return their directory, None when there are none to be read.

    Doing it again answers the same directory. Files that are missing are left out.
    """
    try:
        manifest = read_manifest(head.shard_id, head.manifest)
    except (CorruptSegment, Manifest.DoesNotExist):
        return None
    directory = settings.NODE_FILES.set_aside / f"{head.label}-{head.uid[:8]}-{head.term}-{head.last_seq}.segments"
    if directory.is_dir() or not manifest.namespaces:
        return directory if manifest.namespaces else None
    building = directory.with_name(f".{directory.name}-{uuid.uuid4().hex}")
    try:
        for uid, record in manifest.namespaces.items():
            for segment in record.segments:
                target = building / uid / segment.uid
                make_directories(target)
                for name in stamps_of(segment):
                    _link(segment_directory(head.uid, uid) / segment.uid / name, target / name)
                sync_directory(target)
        make_directories(building)
        about = {"shard": head.uid, "seq": manifest.seq, "term": manifest.term, **manifest.to_document()}
        (building / _MANIFEST).write_bytes(orjson.dumps(about, option=orjson.OPT_INDENT_2))
        sync_directory(building)
        building.rename(directory)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    sync_directory(directory.parent)
    return directory


def _link(source: Path, target: Path) -> None:
    if source.exists():
        link_or_copy(source, target)
