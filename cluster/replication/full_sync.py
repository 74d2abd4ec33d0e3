"""Full sync: a copy is filled with the segments of a manifest; the log after it follows as slices.

Preconditions: the ship lease of the replica, whose token fences every effect. Steps, each safe to lose to a crash of
either side, since the next attempt asks what is there and goes on:
1. offer: the newest manifest is pinned, so that no checkpoint removes its files or the log after it, and offered; the
   copy's node answers how much of each file it has, staged files of an earlier attempt and intact files of its present
   copy included;
2. copy: what is missing is sent in chunks while writes and searches go on at both ends;
3. install: the copy's node checks every file and takes the new state in one transaction; until then it answers from
   the old one.
Afterwards the copy is at the manifest's position, and slices bring it to the head. Progress is in a Move row.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import orjson
from django.conf import settings

from cluster.models import Move, Replica, ReplicaCopy
from cluster.replication.moves import move_begin, move_end
from cluster.states import MovePhase
from cluster.topology import topology
from cluster.transport.client import BINARY, JSON, peer_client, read_json
from cluster.transport.errors import PeerGarbled
from cluster.transport.messages import shard_path
from vectors.errors import MLVectorDBError, StorageBusy
from vectors.models import ShardHead
from vectors.store import pins
from vectors.store.faults import storage_faults
from vectors.store.leases import Lease
from vectors.store.log import Position
from vectors.store.offer import SyncOffer, file_path, offer_make

logger = logging.getLogger(__name__)

_SAVE_EVERY_S = 0.5
_INSTALL_TIMEOUT_S = 300.0
_RESTARTS = 3


class FullSync:
    """One full sync of one copy. `check` raises when the sender has to let go.

    `covers` is the seq that the segments must cover: of a copy that is not trusted, no entry may be kept.
    """

    def __init__(
        self,
        *,
        replica: Replica,
        copy: ReplicaCopy,
        head: ShardHead,
        lease: Lease,
        check: Callable[[], None],
        covers: int = 0,
    ) -> None:
        self._replica, self._copy, self._head = replica, copy, head
        self._lease = lease
        self._check = check
        self._covers = covers
        self._saved_at = 0.0

    def run(self) -> Position:
        """Do it and return the position that the copy has then.

        Raise the errors of `cluster.transport`, LeaseLost, and what the copy's node refuses.
        """
        offer = offer_make(self._head.pk, self._lease)
        if offer.seq < self._covers:
            raise StorageBusy(f"the segments end at {offer.seq}, before {self._covers}: a checkpoint is due")
        move = move_begin(
            kind=Move.Kind.FULL_SYNC,
            replica=self._replica,
            shard=self._head.uid,
            plan={"manifest": offer.number, "seq": offer.seq, "term": offer.term, "files": len(offer.files)},
            rows_total=offer.rows,
            bytes_total=offer.size_bytes,
        )
        try:
            position = self._run(offer, move)
        except MLVectorDBError as error:
            # It stays the move that is under way: the next attempt goes on with it.
            Move.objects.filter(pk=move.pk).update(error=error.message[:500])
            raise
        finally:
            pins.pin_drop(self._head.pk, self._lease.name)
        move_end(move, MovePhase.DONE)
        logger.info(
            "full_sync replica=%s shard=%s seq=%d bytes=%d work_s=%.2f",
            self._replica.name,
            self._head.label,
            position.seq,
            offer.size_bytes,
            move.work_s,
        )
        return position

    def _run(self, offer: SyncOffer, move: Move) -> Position:
        document = offer.to_document()
        began, work_before_s = time.monotonic(), move.work_s
        present = self._json("POST", "", {}, document=document)
        missing = {path: stamp.size - int(present.get(path, 0)) for path, stamp in offer.files.items()}
        move.phase, move.error = MovePhase.COPYING, ""
        move.bytes_done = offer.size_bytes - sum(missing.values())
        self._save(move, began, work_before_s, offer)
        for path, lacking in missing.items():
            if lacking:
                self._send_file(offer, path, offer.files[path].size - lacking, move, began, work_before_s)
        move.phase = MovePhase.FOLLOWING
        self._save(move, began, work_before_s, offer)
        answer = self._json("POST", "/install", {}, document=document, timeout_s=_INSTALL_TIMEOUT_S)
        try:
            return Position(int(answer["term"]), int(answer["seq"]))
        except (KeyError, TypeError, ValueError):
            raise PeerGarbled("answered an install without a position", url=self._replica.url) from None

    def _send_file(
        self, offer: SyncOffer, path: str, offset: int, move: Move, began: float, work_before_s: float
    ) -> None:
        size, restarts = offer.files[path].size, 0
        with storage_faults(), file_path(self._head.uid, path).open("rb", buffering=0) as file:
            while offset < size:
                self._check()
                file.seek(offset)
                chunk = file.read(settings.MLVDB_SYNC_CHUNK_BYTES)
                answer = self._json("PUT", "/file", {"path": path, "offset": offset}, chunk=chunk)
                here = int(answer.get("size", -1))
                if not 0 <= here <= size:
                    raise PeerGarbled("answered a chunk without a size", url=self._replica.url)
                if here <= offset:
                    # Thrown away for its checksum, or another sender's attempt has begun anew.
                    restarts += 1
                    if restarts > _RESTARTS:
                        raise PeerGarbled(f"has thrown {path} away again and again", url=self._replica.url)
                move.bytes_done += here - offset
                offset = here
                if time.monotonic() - self._saved_at > _SAVE_EVERY_S:
                    self._save(move, began, work_before_s, offer)

    def _save(self, move: Move, began: float, work_before_s: float, offer: SyncOffer) -> None:
        move.work_s = work_before_s + time.monotonic() - began
        # Rows are not sent one by one: as many of them are there as bytes of all bytes.
        move.rows_done = offer.rows * move.bytes_done // max(1, offer.size_bytes)
        Move.objects.filter(pk=move.pk, ended_at__isnull=True).update(
            phase=move.phase,
            error=move.error,
            bytes_done=move.bytes_done,
            rows_done=move.rows_done,
            work_s=move.work_s,
        )
        pins.pin_beat(self._head.pk, self._lease.name)
        self._saved_at = time.monotonic()

    def _json(
        self,
        method: str,
        what: str,
        query: dict[str, str | int],
        *,
        document: object = None,
        chunk: bytes | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        now = topology()
        fence = {"cluster": now.cluster, "epoch": now.epoch, "term": self._head.term, **query}
        answer = peer_client().call(
            self._replica.url,
            method,
            shard_path(self._head.uid, f"sync{what}", **fence),
            body=orjson.dumps(document) if chunk is None else chunk,
            content_type=JSON if chunk is None else BINARY,
            timeout_s=timeout_s or 4 * settings.MLVDB_PEER_TIMEOUT_S,
            even_if_silent=True,
        )
        return read_json(self._replica.url, answer)
