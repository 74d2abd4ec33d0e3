"""The log between nodes: where a copy is, slices of the primary's log, and cutting back what the primary has not.

Every effect names cluster, epoch and term of its sender and is refused where any of them is over.
"""

from __future__ import annotations

import threading
import time
from typing import Any, ClassVar

from django.conf import settings
from rest_framework.request import Request
from rest_framework.response import Response

from cluster.api.node.base import (
    CLUSTER,
    EPOCH,
    TERM,
    NeedPlacement,
    NodeRouteView,
    placement_or_409,
    text_parameter,
    whole_parameter,
)
from cluster.replication.knocks import checkpoint_knock
from cluster.services.hearing import primary_heard, set_aside_note
from mlvdb_site.http.errors import RequestError
from mlvdb_site.http.parameters import QueryParameter
from vectors.engine.operations import PayloadError
from vectors.errors import CheckpointBehind, LogGap, LogMismatch
from vectors.runtime import runtime
from vectors.store import log, slices, terms
from vectors.store.cut_back import cut_back
from vectors.store.log import Position
from vectors.store.receive import receive

_FENCE = (CLUSTER, EPOCH, TERM)
_HEAR_EVERY_S = 1.0


def own_copy(request: Request, uid: str) -> int:
    """Return the key of this node's copy of a shard; raise what `placement_or_409` raises."""
    shard = placement_or_409(uid, text_parameter(request, "cluster"), whole_parameter(request, "epoch"))
    if shard.shard_id is None:
        raise NeedPlacement(f"this node has no copy of the shard {uid} yet", detail={"epoch": 0})
    return shard.shard_id


def copy_position(shard_id: int) -> dict[str, Any]:
    """Return where a copy of this node is, with all that a sender needs to find the last common entry."""
    head = log.read_head(shard_id)
    if head is None:
        raise LogGap(f"shard copy {shard_id} is not on this node")
    return {
        "term": head.term,
        "seq": head.last_seq,
        "promised_term": head.promised_term,
        "terms": [list(start) for start in terms.read_terms(shard_id)],
        "manifest_seq": head.manifest_seq,
        "oldest_seq": slices.oldest_seq(shard_id),
        "damaged": head.damage is not None,
    }


class PositionView(NodeRouteView):
    """Where this node's copy of a shard is."""

    parameters: ClassVar = {"GET": (CLUSTER, EPOCH)}

    def get(self, request: Request, uid: str) -> Response:
        """Return the position and the history of terms."""
        shard_id = own_copy(request, uid)
        return Response(copy_position(shard_id))


class SliceView(NodeRouteView):
    """A slice of the primary's log; what this copy has of it already is passed over."""

    parameters: ClassVar = {"POST": (*_FENCE, QueryParameter("head_seq", "Head of the sender's log.", required=True))}

    def post(self, request: Request, uid: str) -> Response:
        """Add the entries and return the position of the copy."""
        shard_id = own_copy(request, uid)
        term, head_seq = whole_parameter(request, "term"), whole_parameter(request, "head_seq")
        try:
            before, entries = slices.decode_slice(self.binary_body(request))
        except PayloadError as error:
            raise RequestError(str(error), code="corrupt_slice", field="body") from None
        try:
            # What is received is in this node's memory soon, as what clients write.
            with runtime().reserved_memory(sum(len(entry.payload) for entry in entries)):
                position = receive(shard_id, term=term, before=before, entries=entries)
        except (LogGap, LogMismatch) as error:
            error.detail = {**copy_position(shard_id), **error.detail}
            raise
        except CheckpointBehind:
            checkpoint_knock(uid)
            raise
        _hearing.note(request, uid, Position(term, head_seq))
        head = log.read_head(shard_id)
        if head is not None and head.tail_bytes >= settings.MLVDB_TAIL_SOFT_BYTES:
            checkpoint_knock(uid)
        return Response({"term": position.term, "seq": position.seq})


class CutBackView(NodeRouteView):
    """What this copy has behind a position, and the primary has not, is set aside in a file and cut off."""

    parameters: ClassVar = {
        "POST": (
            *_FENCE,
            QueryParameter("to_term", "Term of the last common entry.", required=True),
            QueryParameter("to_seq", "seq of the last common entry.", required=True),
        )
    }

    def post(self, request: Request, uid: str) -> Response:
        """Cut back and return what was set aside."""
        shard_id = own_copy(request, uid)
        to = Position(whole_parameter(request, "to_term"), whole_parameter(request, "to_seq"))
        cut = cut_back(shard_id, to=to, term=whole_parameter(request, "term"))
        if cut.entries:
            set_aside_note(shard_uid=uid, aside=cut)
        return Response({"entries": cut.entries, "set_aside": None if cut.path is None else cut.path.name})


class _Hearing:
    """Notes that the primary was heard, at most once a second a shard: a transaction for each slice would cost more."""

    def __init__(self) -> None:
        self._noted: dict[str, float] = {}
        self._lock = threading.Lock()

    def note(self, request: Request, uid: str, head: Position) -> None:
        """Note where the log of the sender of `request` ends."""
        now = time.monotonic()
        with self._lock:
            if now - self._noted.get(uid, -_HEAR_EVERY_S) < _HEAR_EVERY_S:
                return
            self._noted[uid] = now
        primary_heard(
            cluster=text_parameter(request, "cluster"),
            epoch=whole_parameter(request, "epoch"),
            heads={uid: (head.term, head.seq)},
        )


_hearing = _Hearing()
