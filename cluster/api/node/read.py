"""Reads and writes for other nodes: those of the same cluster ask this copy, a coordinator asks the whole shard.

A read of the shard's own cluster is answered from this node's copy, and never sent on: a copy that lacks what is asked
for says so at once, and the node that asked decides. So the two threads that each worker keeps from waiting are enough
for what peers ask. A coordinator, known by the cluster in its request, is answered for the shard: at a level other
copies are waited for, and such requests count among those that wait. These copies wait for nobody, so that waits cannot
close a circle.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgpack
from django.http import HttpResponse
from rest_framework.request import Request

from cluster.api.node.assignment import check_coordinator_is
from cluster.api.node.base import CLUSTER, NeedPlacement, NodeRouteView, WrongCluster, sender, text_parameter
from cluster.query_processor.copies import Here, Requirement, copies_of
from cluster.query_processor.errors import CopySyncing
from cluster.query_processor.means import means
from cluster.query_processor.reading import READS, Read
from cluster.query_processor.remote import CONTENT_TYPE, LAGGING_HEADER, POSITION
from cluster.query_processor.session_tokens import tokens_for
from cluster.query_processor.shard_node import (
    WRITES,
    check_still_primary,
    copies_lagging,
    read_for_coordinator,
    write_for_coordinator,
)
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
        asked = _request(self.binary_body(request))
        cluster = text_parameter(request, "cluster")
        if is_coordinator_of(uid, cluster) and asked.operation in READS:
            answer = read_for_coordinator(uid, Read(asked.operation, asked.arguments), asked.options)
            return _binary(wire.answer_body(asked.operation, answer))
        check_still_primary(uid, cluster)
        here = _own_copy(uid, cluster)
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


class WriteView(NodeRouteView):
    """A part of a write, from the coordinator whose shard this is: all of it is committed, or nothing.

    Rows whose slots are not this shard's are refused in the transaction that would append them; so the epoch of the
    sender does not matter.
    """

    parameters: ClassVar = {"POST": (CLUSTER,)}

    def post(self, request: Request, uid: str) -> HttpResponse:
        """Do it and answer in binary."""
        asked = _request(self.binary_body(request))
        cluster = text_parameter(request, "cluster")
        if not is_coordinator_of(uid, cluster):
            check_still_primary(uid, cluster)
            view = topology()
            if view.assignment is not None:
                raise WrongCluster(
                    f"this node is a shard of the cluster {view.assignment.cluster}",
                    detail={"cluster": view.assignment.cluster},
                )
            raise NeedPlacement(f"this node is nobody's shard {uid}", detail={"epoch": 0})
        told = topology().assignment
        if told is not None:
            check_coordinator_is(told, sender(request))
        if asked.operation not in WRITES:
            raise RequestError(f"{asked.operation} is no write of rows", code="invalid_write", field="op")
        result = write_for_coordinator(uid, asked.operation, asked.arguments, asked.options)
        answer = _binary(wire.write_answer_body(result))
        lagging = copies_lagging(uid, result)
        if lagging:
            answer[LAGGING_HEADER] = ",".join(lagging)
        return answer


def is_coordinator_of(uid: str, cluster: str) -> bool:
    """Whether a cluster is that of the coordinator whose shard `uid` this node has been told to be."""
    assignment = topology().assignment
    return assignment is not None and (assignment.uid, assignment.cluster) == (uid, cluster)


def _request(body: bytes) -> wire.ReadRequest:
    try:
        return wire.read_of(body)
    except wire.WireError as error:
        raise RequestError(str(error), code="invalid_read", field="body") from None


def _own_copy(uid: str, cluster: str) -> Here:
    """Return this node's copy of a shard; raise NeedPlacement or WrongCluster."""
    view = topology()
    shard = view.shards.get(uid)
    known = view.cluster if shard is None else view.cluster_of(shard)
    if cluster != known:
        raise WrongCluster(f"this node's copy belongs to the cluster {known}", detail={"cluster": known})
    if shard is None or shard.shard_id is None:
        raise NeedPlacement(f"this node has no copy of the shard {uid}", detail={"epoch": view.epoch})
    own = next(copy for copy in copies_of(shard) if copy.is_here)
    return means().here(shard, own)


def _position(here: Here) -> dict[str, Any]:
    if here.copy.state is CopyState.QUARANTINED:
        raise CopySyncing(f"the copy of shard {here.shard.label} on this node differs from its primary's")
    head = here.head()
    return {
        "term": head.term,
        "seq": head.last_seq,
        "promised_term": head.promised_term,
        "epoch": topology().epoch_of(here.shard),
    }


def _binary(body: bytes) -> HttpResponse:
    return HttpResponse(body, content_type=CONTENT_TYPE)
