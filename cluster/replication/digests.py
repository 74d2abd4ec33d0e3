"""Digests of a copy at one position: computed here by a background task, asked of other nodes until they have them.

To compare copies that go on growing, both are taken at one (term, seq): segments of a manifest at or before it, and the
log up to it. Opening them checks every checksum on the way, so a digest is also the proof that a copy's files and log
are what they were when they were written.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from django.conf import settings

from cluster.models import DigestRun
from cluster.topology import topology
from cluster.transport.client import peer_client
from cluster.transport.errors import PeerGarbled
from cluster.transport.messages import shard_path
from vectors.engine.digest import range_digests
from vectors.errors import LogGap, MLVectorDBError
from vectors.models import ShardHead
from vectors.store import recovery, terms
from vectors.store.log import Position

logger = logging.getLogger(__name__)

RANGES = 64
_KEPT = 16
_ASK_EVERY_S = 0.25


class Trouble(StrEnum):
    """Why there is no digest. PASSED: the position cannot be had any more; another one can."""

    PASSED = "passed"
    DAMAGED = "damaged"
    FAILED = "failed"


class Digest(NamedTuple):
    """Rows and digest per range of slots, or what kept them from being had."""

    ranges: Sequence[tuple[int, str]]
    trouble: Trouble | None = None
    reason: str = ""


def digest_at(shard_id: int, position: Position) -> Digest:
    """Return the digest of a copy of this node at a position; reads all of it. Raise StorageError and the like."""
    try:
        opened = recovery.open_shard(shard_id, replay=False)
        if not opened.damage and opened.engine.seq <= position.seq:
            recovery.catch_up(opened, through=position.seq)
    except LogGap as error:
        return Digest((), Trouble.PASSED, error.message)
    if opened.damage:
        return Digest((), Trouble.DAMAGED, str(opened.damage)[:400])
    if opened.engine.seq != position.seq:
        return Digest((), Trouble.PASSED, f"segments are at {opened.engine.seq} already")
    if terms.term_at(terms.read_terms(shard_id), position.seq) != position.term:
        return Digest((), Trouble.PASSED, f"the entry at {position.seq} is of another term here")
    return Digest(range_digests(opened.engine, RANGES))


def digest_compute(run_id: int) -> None:
    """Compute a digest that was asked for and write it into its row; a row that is gone or done is nothing to do."""
    run = DigestRun.objects.filter(pk=run_id, ranges__isnull=True, error="").first()
    head = None if run is None else ShardHead.objects.filter(uid=run.shard).first()
    if run is None or head is None:
        return
    began = time.monotonic()
    try:
        digest = digest_at(head.pk, Position(run.term, run.seq))
    except MLVectorDBError as error:
        digest = Digest((), Trouble.FAILED, f"{error.code}: {error.message}")
    fields: dict[str, Any] = {"ranges": [list(entry) for entry in digest.ranges]}
    if digest.trouble is not None:
        fields = {"error": f"{digest.trouble}: {digest.reason}"[:500]}
    DigestRun.objects.filter(pk=run.pk).update(**fields)
    logger.info(
        "digest_computed shard=%s seq=%d trouble=%s took_s=%.2f",
        head.label,
        run.seq,
        digest.trouble or "none",
        time.monotonic() - began,
    )


def run_of(request: str, shard_uid: str, position: Position) -> tuple[DigestRun, bool]:
    """Return the row of a request for a digest and whether it was made now; the newest few of a shard are kept."""
    run, made = DigestRun.objects.get_or_create(
        request=request, defaults={"shard": shard_uid, "term": position.term, "seq": position.seq}
    )
    if made:
        kept = DigestRun.objects.filter(shard=shard_uid).order_by("-pk").values_list("pk", flat=True)[:_KEPT]
        DigestRun.objects.filter(shard=shard_uid).exclude(pk__in=list(kept)).delete()
    return run, made


def run_document(run: DigestRun) -> dict[str, Any]:
    """Return what a node answers of a digest that was asked of it."""
    trouble, _, reason = run.error.partition(": ")
    if run.error:
        return {"state": "failed", "trouble": trouble, "reason": reason}
    return {"state": "computing"} if run.ranges is None else {"state": "done", "ranges": run.ranges}


def digest_asked(url: str, shard_uid: str, position: Position, *, deadline: float) -> Digest:
    """Ask the node at `url` for the digest of its copy, again and again until it has it or `deadline` (monotonic).

    Raise the errors of `cluster.transport`.
    """
    request = uuid.uuid4().hex
    while True:
        now = topology()
        answer = peer_client().json(
            url,
            "POST",
            shard_path(shard_uid, "digest", cluster=now.cluster, epoch=now.epoch),
            json={"request": request, "term": position.term, "seq": position.seq},
            timeout_s=settings.MLVDB_PEER_TIMEOUT_S,
            even_if_silent=True,
        )
        found = _read(answer, url)
        if found is not None:
            return found
        if time.monotonic() > deadline:
            return Digest((), Trouble.FAILED, f"{url} has not finished its digest in time")
        time.sleep(_ASK_EVERY_S)


def position_asked(url: str, shard_uid: str) -> tuple[Position, bool]:
    """Ask a node for the position of its copy, and whether it knows it to be damaged."""
    now = topology()
    answer = peer_client().json(
        url,
        "GET",
        shard_path(shard_uid, "position", cluster=now.cluster, epoch=now.epoch),
        even_if_silent=True,
    )
    try:
        return Position(int(answer["term"]), int(answer["seq"])), bool(answer.get("damaged"))
    except (KeyError, TypeError, ValueError):
        raise PeerGarbled("answered no position", url=url) from None


def _read(answer: dict[str, Any], url: str) -> Digest | None:
    try:
        if answer["state"] == "computing":
            return None
        if answer["state"] == "failed":
            return Digest((), Trouble(answer["trouble"]), str(answer.get("reason", "")))
        ranges = [(int(rows), str(digest)) for rows, digest in answer["ranges"]]
    except (KeyError, TypeError, ValueError) as error:
        raise PeerGarbled(f"answered no digest: {error!r}", url=url) from None
    if len(ranges) != RANGES:
        raise PeerGarbled(f"answered {len(ranges)} ranges instead of {RANGES}", url=url)
    return Digest(ranges)
