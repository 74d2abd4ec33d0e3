"""Reads for other nodes: answered from this node's own copy, and never sent on.

Nothing here waits for another node or for an entry to come: a copy that lacks what is asked for says so at once, and
the node that asked decides. So the two threads that each worker keeps from waiting are enough for what peers ask.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgpack
from django.http import HttpResponse
from rest_framework.request import Request

from cluster.api.node.base import CLUSTER, NeedPlacement, NodeRouteView, WrongCluster, text_parameter
from cluster.query_processor.copies import Here, Requirement, copies_of
from cluster.query_processor.errors import CopySyncing
from cluster.query_processor.means import means
from cluster.query_processor.reading import READS, Read
from cluster.query_processor.remote import CONTENT_TYPE, POSITION
from cluster.query_processor.session_tokens import tokens_for
from cluster.states import CopyState
from cluster.topology import topology
from cluster.transport import wire
from mlvdb_site.http.errors import RequestError
from vectors.store.log import Position


class ReadView(NodeRouteView):
    """One read of this node's copy of a shard, or where that copy is.

    The epoch of the sender is not asked for: what a copy answers is right or wrong by its own position, and the answer
    carries this node's epoch for those whose set of members depends on it.
    """

    parameters: ClassVar = {"POST": (CLUSTER,)}

    def post(self, request: Request, uid: str) -> HttpResponse:
        """Answer it in binary."""
        try:
            asked = wire.read_of(self.binary_body(request))
        except wire.WireError as error:
            raise RequestError(str(error), code="invalid_read", field="body") from None
        here = _own_copy(uid, text_parameter(request, "cluster"))
        if asked.operation == POSITION:
            return _binary(msgpack.packb(_position(here)))
        if asked.operation not in READS:
            raise RequestError(f"{asked.operation} is no read", code="invalid_read", field="op")
        requirement = Requirement(
            None if asked.position is None else Position(*asked.position),
            tokens_for(here.shard, asked.options.min_seq).token,
        )
        answer = here.read(Read(asked.operation, asked.arguments), asked.options, requirement=requirement)
        return _binary(wire.answer_body(asked.operation, answer))


def _own_copy(uid: str, cluster: str) -> Here:
    """Return this node's copy of a shard; raise NeedPlacement or WrongCluster."""
    view = topology()
    shard = view.shards.get(uid)
    if cluster != view.cluster:
        raise WrongCluster(f"this node belongs to the cluster {view.cluster}", detail={"cluster": view.cluster})
    if shard is None or shard.shard_id is None:
        raise NeedPlacement(f"this node has no copy of the shard {uid}", detail={"epoch": view.epoch})
    own = next(copy for copy in copies_of(shard) if copy.is_here)
    return means().here(shard, own)


def _position(here: Here) -> dict[str, Any]:
    if here.copy.state is CopyState.QUARANTINED:
        raise CopySyncing(f"the copy of shard {here.shard.label} on this node differs from its primary's")
    head = here.head()
    return {"term": head.term, "seq": head.last_seq, "promised_term": head.promised_term}


def _binary(body: bytes) -> HttpResponse:
    return HttpResponse(body, content_type=CONTENT_TYPE)
