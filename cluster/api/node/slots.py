"""What a coordinator does at one of its shards on this node for a move: rows out, rows in, which slots are written.

One route, the operation is its last word: what is asked is JSON, pages of rows are binary (`moving_wire`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import orjson
from django.conf import settings
from django.http import HttpResponse
from rest_framework.request import Request

from cluster.api.node.assignment import assigned_or_409
from cluster.api.node.base import CLUSTER, NodeRouteView, binary_answer, sender, text_parameter
from cluster.moves.ends import LocalEnd, slots_of_text, text_of
from mlvdb_site.http.errors import RequestError
from vectors.engine.operations import PayloadError
from vectors.query_processor import moving_wire
from vectors.store.log import Position


class SlotsView(NodeRouteView):
    """One operation of a move at a shard of this node, for the coordinator whose shard it is."""

    parameters: ClassVar = {"POST": (CLUSTER,)}

    def post(self, request: Request, uid: str, operation: str) -> HttpResponse:
        """Do it."""
        body = self.binary_body(request)
        _, shard = assigned_or_409(uid, text_parameter(request, "cluster"), sender=sender(request))
        assert shard.shard_id is not None
        end = LocalEnd(shard.shard_id, uid)
        if operation == "take":
            return _json({"position": list(_take(end, body))})
        do = _OPERATIONS.get(operation)
        if do is None:
            raise RequestError(f"there is no operation {operation}", status=404, code="not_found")
        try:
            given = orjson.loads(body)
            if not isinstance(given, dict):
                raise TypeError("no object")
            answer = do(end, given)
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError(f"what is asked cannot be read: {error!r}", field="body") from None
        return answer if isinstance(answer, HttpResponse) else _json(answer)


def _take(end: LocalEnd, body: bytes) -> Position:
    try:
        asked = moving_wire.decode_take(body)
    except PayloadError as error:
        raise RequestError(str(error), field="body") from None
    return end.take(
        asked.move, before=asked.before, after=asked.after, operations=asked.operations, namespaces=asked.namespaces
    )


def _clean(end: LocalEnd, given: Mapping[str, Any]) -> Any:
    epoch = given.get("epoch")
    rows = end.clean(
        slots_of_text(given["slots"]),
        move=str(given.get("move") or ""),
        epoch=None if epoch is None else _whole(epoch),
    )
    return {"rows": rows}


def _quorum(end: LocalEnd, given: Mapping[str, Any]) -> Any:
    timeout_s = min(float(given["timeout_s"]), settings.MLVDB_PEER_TIMEOUT_S)
    return {"reached": end.wait_quorum(_position(given["position"]), timeout_s=timeout_s)}


def _counts(end: LocalEnd, _given: Mapping[str, Any]) -> Any:
    rows, sizes = end.slot_counts()
    return binary_answer(rows.astype("<i8").tobytes() + sizes.astype("<i8").tobytes())


def _set(end: LocalEnd, given: Mapping[str, Any]) -> Any:
    position = end.set_slots(
        _whole(given["epoch"]), slots_of_text(given["slots"]), cursor_of=str(given.get("cursor_of") or "")
    )
    return {"position": list(position)}


def _slots(end: LocalEnd, _given: Mapping[str, Any]) -> Any:
    return {
        "changes": [[change.seq, change.epoch, text_of(change.writable)] for change in end.slot_changes()],
    }


def _pin(end: LocalEnd, given: Mapping[str, Any]) -> Any:
    end.pin(str(given["holder"]), _whole(given["seq"]))
    return {}


def _unpin(end: LocalEnd, given: Mapping[str, Any]) -> Any:
    end.unpin(str(given["holder"]))
    return {}


def _forget(end: LocalEnd, given: Mapping[str, Any]) -> Any:
    end.forget(str(given["move"]))
    return {}


_OPERATIONS: Mapping[str, Callable[[LocalEnd, Mapping[str, Any]], Any]] = {
    "position": lambda end, given: {"position": list(end.position())},
    "pin": _pin,
    "unpin": _unpin,
    "rows": lambda end, given: binary_answer(
        moving_wire.encode_rows(
            end.rows(slots_of_text(given["slots"]), after=str(given["after"]), max_bytes=_size(given["max_bytes"]))
        )
    ),
    "entries": lambda end, given: binary_answer(
        moving_wire.encode_entries(
            end.entries(
                slots_of_text(given["slots"]), after=_position(given["after"]), max_bytes=_size(given["max_bytes"])
            )
        )
    ),
    "cursor": lambda end, given: {"cursor": end.cursor(str(given["move"]))},
    "set": _set,
    "slots": _slots,
    "namespaces": lambda end, given: {
        "namespaces": [
            [spec.uid, spec.name, spec.dimension, spec.metric, spec.recall_target, spec.picture]
            for spec in end.namespaces()
        ]
    },
    "clean": _clean,
    "forget": _forget,
    "counts": _counts,
    "quorum": _quorum,
}


def _json(answer: Mapping[str, Any]) -> HttpResponse:
    return HttpResponse(orjson.dumps(dict(answer)), content_type="application/json")


def _position(value: Any) -> Position:
    term, seq = value
    return Position(_whole(term), _whole(seq))


def _size(value: Any) -> int:
    return _whole(value, most=settings.MLVDB_PEER_ANSWER_BYTES)


def _whole(value: Any, *, most: int = 2**63 - 1) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"not a whole number up to {most}: {value!r}"[:200])
    return value
