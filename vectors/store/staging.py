"""Receiving the files of a full sync: taken in beside the present copy, which goes on serving until they are installed.

Below `staging/<shard uid>/` lie `offer.json`, what is being taken, and `files/`, as the offer's paths name them. A file
has its name only once its bytes are on disk and their checksum is that of the offer; until then it is `.<name>` and
grows at its end alone. So a crash of either side at any instruction loses at most a part of one file: the sender
offers again and is told what is wanted.

Of two senders the one with the higher fence (term, lease token, manifest) goes on, and the other is refused.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import orjson
from django.conf import settings

from vectors.errors import CorruptSegment, InvalidInput, StorageBusy, StorageFull, SyncUnknown
from vectors.models import Manifest, ShardHead
from vectors.store import reconcile
from vectors.store.faults import storage_faults
from vectors.store.file_lock import file_locked
from vectors.store.log import Position
from vectors.store.manifests import read_manifest, segment_directory
from vectors.store.offer import SyncOffer
from vectors.store.partial_files import chunk_add, is_whole, partial_path, size_here
from vectors.store.segment_files import FileStamp, SegmentRecord, check_file, link_or_copy, make_directories, stamps_of

logger = logging.getLogger(__name__)

_SHARD_UID = re.compile(r"[0-9a-f]{32}")
_OFFER = "offer.json"
_FILES = "files"
# Disk space that is left to the log and the database while files come in.
_SPARE_BYTES = 64 * 1024 * 1024


@storage_faults()
def offer_take(offer: SyncOffer) -> dict[str, int]:
    """Make ready for an offer; return how many bytes of each file are here. The sender goes on from there.

    Files of the present copy are used again where the offer has a segment with the same files and their bytes still
    have the checksums they should. Doing it again is harmless, and is how a sender resumes. With much to check it may
    take longer than a request should: what was found is kept for the next one.

    Raise StaleTerm, NotPrimary and SyncBehind as `reconcile.check_offer` does, SyncUnknown when a newer offer has been
    taken, StorageFull when the disk has no room for what is missing, and StorageError and the like.
    """
    with locked(offer.shard, fcntl.LOCK_EX):
        before = staged_offer(offer.shard)
        if before is not None and before.outranks(offer):
            raise SyncUnknown("a newer full sync has taken over", detail={"fence": list(before.fence)})
        head = reconcile.check_offer(offer)
        root = staged_files(offer.shard)
        _remove_other_files(root, {} if before is None else before.files, offer.files)
        _write_offer(offer)
        _reuse(head.shard_id, head.manifest, offer, root)
        here = {path: size_here(root / path, stamp) for path, stamp in offer.files.items()}
        _check_room(root, offer.size_bytes - sum(here.values()))
    logger.info(
        "sync_offer_taken shard=%s manifest=%d bytes=%d here=%d",
        head.label,
        offer.number,
        offer.size_bytes,
        sum(here.values()),
    )
    return here


def chunk_write(shard_uid: str, path: str, offset: int, data: bytes | memoryview) -> int:
    """Write bytes of a file at `offset`; return where the next are to begin, the file's size when it is complete.

    Bytes that are here already, or do not follow those that are, are not written: the answer says where to go on. A
    complete file whose checksum is wrong is thrown away and 0 answered: it is asked for again.

    Raise SyncUnknown when there is no offer (any more) that lists the file, InvalidInput for bytes beyond its end,
    and StorageFull, StorageError and the like; what was written before stays.
    """
    with storage_faults(), locked(shard_uid, fcntl.LOCK_SH):
        offer = staged_offer(shard_uid)
        stamp = None if offer is None else offer.files.get(path)
        if stamp is None:
            raise SyncUnknown("no full sync of this shard that is under way has such a file", field="path")
        if offset < 0 or offset + len(data) > stamp.size:
            raise InvalidInput(f"the file has {stamp.size} bytes", field="offset")
        return chunk_add(staged_files(shard_uid) / path, stamp, offset, data)


def staged_offer(shard_uid: str) -> SyncOffer | None:
    """Return the offer that was taken last, None when there is none; the caller holds the lock."""
    path = _root(shard_uid) / _OFFER
    try:
        about = path.stat()
    except FileNotFoundError:
        return None
    return _read_offer(path, about.st_ino, about.st_mtime_ns)


def staged_files(shard_uid: str) -> Path:
    """Return the directory in which the files of the offer are."""
    return _root(shard_uid) / _FILES


def missing_files(offer: SyncOffer) -> dict[str, int]:
    """Return the files that are not complete and how many bytes of them are here; the caller holds the lock."""
    root = staged_files(offer.shard)
    here = {path: size_here(root / path, stamp) for path, stamp in offer.files.items()}
    return {path: size for path, size in here.items() if not is_whole(root / path, offer.files[path])}


def clear_unneeded(head: ShardHead) -> None:
    """Remove staged files that nothing will come of: of an offer that is installed, where a crash came in between, of
    a sender whose successor has filled the log by slices, and of a copy that has become primary."""
    if not staged_files(head.uid).exists():
        return
    # Who holds the staging now is not done with it.
    with suppress(StorageBusy), locked(head.uid, fcntl.LOCK_EX, timeout_s=0):
        offer = staged_offer(head.uid)
        is_over = offer is not None and (head.term > offer.head.term or is_installed(head.pk, offer))
        if head.is_primary or is_over:
            shutil.rmtree(staged_files(head.uid), ignore_errors=True)


def is_under_way(shard_uid: str, shard_id: int, position: Position) -> bool:
    """Whether files of a full sync are here that a copy at `position` has not installed, nor left behind by slices."""
    if not staged_files(shard_uid).exists():
        return False
    offer = staged_offer(shard_uid)
    return offer is None or not (position >= offer.head or is_installed(shard_id, offer))


def is_installed(shard_id: int, offer: SyncOffer) -> bool:
    """Return whether the copy stands on an offer, or did before its newest checkpoints."""
    documents = Manifest.objects.filter(shard_id=shard_id).values_list("document", flat=True)
    return any(document.get("installed") == offer.identity for document in documents)


@contextmanager
def locked(shard_uid: str, mode: int, *, timeout_s: float | None = None) -> Iterator[None]:
    """Hold the shard's staging: shared for writing chunks, exclusively for what changes which files there are.

    Raise StorageBusy when that is not to be had in `timeout_s` (MLVDB_DATABASE_TIMEOUT_S when None), InvalidInput for
    what is no uid.
    """
    if not _SHARD_UID.fullmatch(shard_uid):
        raise InvalidInput("this is no uid of a shard", field="shard")
    make_directories(settings.NODE_FILES.staging)
    wait_s = settings.MLVDB_DATABASE_TIMEOUT_S if timeout_s is None else timeout_s
    with file_locked(_root(shard_uid).with_suffix(".lock"), mode, timeout_s=wait_s):
        yield


def _root(shard_uid: str) -> Path:
    return settings.NODE_FILES.staging / shard_uid


@lru_cache(maxsize=8)
def _read_offer(path: Path, inode: int, written_ns: int) -> SyncOffer | None:
    # Every chunk asks; inode and time tell a new offer from the one that is known.
    try:
        return SyncOffer.from_document(orjson.loads(path.read_bytes()))
    except (InvalidInput, ValueError):
        logger.warning("sync_offer_unreadable path=%s", path)
        return None


def _write_offer(offer: SyncOffer) -> None:
    root = _root(offer.shard)
    make_directories(root / _FILES)
    temporary = root / f".{_OFFER}"
    with temporary.open("wb") as file:
        file.write(orjson.dumps(offer.to_document()))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(root / _OFFER)


def _remove_other_files(root: Path, before: Mapping[str, FileStamp], wanted: Mapping[str, FileStamp]) -> None:
    """Remove what the offer does not list, or what was checked against another stamp than it has there."""
    for directory in sorted(root.glob("*/*")):
        for path in directory.iterdir():
            name = f"{directory.relative_to(root).as_posix()}/{path.name.removeprefix('.')}"
            if name not in wanted or before.get(name) != wanted[name]:
                path.unlink()
        with suppress(OSError):
            # Fails, as it should, while something is in it.
            directory.rmdir()


def _reuse(shard_id: int, number: int, offer: SyncOffer, root: Path) -> None:
    """Link files of the present copy that the offer has too, once their bytes are found to be what they should be."""
    try:
        present = read_manifest(shard_id, number)
    except (CorruptSegment, Manifest.DoesNotExist):
        return
    for uid, record in offer.manifest.namespaces.items():
        known = present.namespaces.get(uid)
        for segment in record.segments:
            # All the files at once: that two differing segments agree in every checksum is beyond chance.
            twin = next((item for item in (known.segments if known else ()) if item.files == segment.files), None)
            if twin is None:
                continue
            here = segment_directory(offer.shard, uid) / twin.uid
            for name, stamp in stamps_of(segment).items():
                known_as = _name_here(twin, segment, name)
                if known_as is not None:
                    _reuse_file(here / known_as, stamp, root / uid / segment.uid / name)


def _name_here(twin: SegmentRecord, segment: SegmentRecord, name: str) -> str | None:
    """Return how a file of an offered segment is called in one here with the same rows, None when it is not there."""
    if name == segment.deleted:
        return twin.deleted if twin.deleted_stamp == segment.deleted_stamp else None
    if segment.index is not None and name == segment.index.name:
        return twin.index.name if twin.index is not None and twin.index.stamp == segment.index.stamp else None
    return name


def _reuse_file(source: Path, stamp: FileStamp, target: Path) -> None:
    if target.exists():
        return
    try:
        check_file(source, stamp)
        make_directories(target.parent)
        link_or_copy(source, target)
    except (CorruptSegment, FileNotFoundError) as error:
        # Corrupt, or removed by a checkpoint in this moment: the sender has it.
        logger.info("sync_file_not_reused path=%s reason=%s", source, error)
        return
    partial_path(target).unlink(missing_ok=True)


def _check_room(root: Path, missing: int) -> None:
    free = shutil.disk_usage(root).free
    if missing + _SPARE_BYTES > free:
        raise StorageFull(
            f"the disk has {free} bytes free, and {missing} are to come",
            detail={"missing_bytes": missing, "free_bytes": free, "spare_bytes": _SPARE_BYTES},
        )
