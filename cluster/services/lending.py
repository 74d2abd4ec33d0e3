"""Lending: a copy that has more than the one which is to be the primary sends it what that lacks.

For a shard whose primary is gone, where the copy with most may not take its place. Nothing is decided by it: entries of
a primary's term are that primary's alone, whoever brings them, and a copy that has promised a newer term takes none.
"""

from __future__ import annotations

import logging

import orjson
from django.conf import settings

from cluster.models import Placement
from cluster.replication.sender import CopyPosition
from cluster.transport.client import peer_client
from cluster.transport.errors import PeerGarbled
from cluster.transport.messages import shard_path
from vectors.errors import Conflict, NotReady
from vectors.models import ShardHead
from vectors.store import log, slices, terms
from vectors.store.log import Head, Position

logger = logging.getLogger(__name__)


class NotLent(Conflict):
    """Raised when another copy cannot be brought on from this one: it is not at an earlier place of the same log."""

    code = "not_lent"


def tail_lend(shard_uid: str, *, url: str, epoch: int) -> Position:
    """Send the copy at a URL the entries that this node's has beyond it; return where it is then.

    `epoch` is that of the placement which the receiver has: it may have been told of a newer one than this node.
    Raise NotLent, LogGap, NotReady, and the errors of `cluster.transport`.
    """
    head = _head(shard_uid)
    cluster = Placement.objects.filter(shard=shard_uid).values_list("cluster", flat=True).get()
    fence: dict[str, str | int] = {"cluster": cluster, "epoch": epoch}
    answer = peer_client().json(url, "GET", shard_path(shard_uid, "position", **fence), even_if_silent=True)
    theirs = CopyPosition.of(answer, url=url)
    common = terms.last_common(terms.read_terms(head.shard_id), head.last_seq, theirs.terms, theirs.seq)
    if common.seq != theirs.seq or theirs.damaged or theirs.promised_term > head.term:
        raise NotLent(
            f"the copy at {url} is at term {theirs.term}, seq {theirs.seq}, and has promised {theirs.promised_term}",
            detail={"term": head.term, "seq": head.last_seq},
        )
    while common.seq < head.last_seq:
        entries = slices.read_slice(
            head.shard_id, common.seq, through=head.last_seq, max_bytes=settings.MLVDB_SLICE_BYTES
        )
        sent = peer_client().call(
            url,
            "POST",
            shard_path(shard_uid, "slice", **fence, term=head.term, head_seq=head.last_seq),
            body=slices.encode_slice(common, entries),
            even_if_silent=True,
        )
        before, common = common, _position(sent.body, url)
        if common.seq <= before.seq:
            raise NotLent(f"the copy at {url} stays at seq {common.seq}")
    logger.warning("tail_lent shard=%s to=%s from_seq=%d to_seq=%d", head.label, url, theirs.seq, common.seq)
    return common


def _head(shard_uid: str) -> Head:
    row = ShardHead.objects.filter(uid=shard_uid, is_primary=False, damage__isnull=True).values_list("pk", flat=True)
    pk = row.first()
    head = None if pk is None else log.read_head(pk)
    if head is None or not Placement.objects.filter(shard=shard_uid).exists():
        raise NotReady("this node has no replica's copy of the shard that is whole")
    return head


def _position(body: bytes, url: str) -> Position:
    try:
        answer = orjson.loads(body)
        return Position(int(answer["term"]), int(answer["seq"]))
    except (KeyError, TypeError, ValueError) as error:
        raise PeerGarbled(f"answered a slice without a position: {error!r}", url=url) from None
