"""Replication and sharding in OpenAPI: what each endpoint answers where it is enabled, and where it is not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cluster.api import moves, picture, replication, sharding
from cluster.api.enabled import EnabledView
from cluster.api.schemas import component_schemas
from mlvdb_site.http.openapi import MEDIA_TYPES, Schema, add_components, describe, ref

_FORM = "application/x-www-form-urlencoded"
_DONE: Schema = ref("ReplicationChange")
_OBJECT: Schema = {"type": "object", "additionalProperties": True}

_SHARD_ADDED = {
    "status": "success",
    "message": "Shard shard_3 added",
    "shard_id": "shard_3",
    "is_local": False,
    "move": 1,
}

#: (view, method) → what it answers where it is enabled, and an example of that.
_ANSWERS: Mapping[tuple[type[EnabledView], str], tuple[Schema, Any]] = {
    (replication.ReplicationInfoView, "GET"): (ref("ReplicationInfo"), None),
    (replication.ReplicasView, "POST"): (_DONE, {"status": "success", "message": "Replica replica_1 added"}),
    (replication.ReplicasHealthView, "GET"): (ref("ReplicasHealth"), {"replicas_health": {"replica_1": True}}),
    (replication.ReplicaView, "DELETE"): (_DONE, {"status": "success", "message": "Replica replica_1 removed"}),
    (replication.ReplicaHealthView, "GET"): (
        ref("ReplicaHealth"),
        {"replica_id": "replica_1", "is_healthy": True},
    ),
    (replication.ReplicaSyncView, "POST"): (
        _DONE,
        {"status": "success", "message": "Catch-up of replica replica_1 started", "move": 1},
    ),
    (replication.ReplicaPromoteView, "POST"): (_DONE, None),
    (replication.PromoteView, "POST"): (_DONE, None),
    (picture.TopologyView, "GET"): (_OBJECT, None),
    (moves.MovesView, "GET"): (ref("Moves"), None),
    (moves.MovesView, "POST"): (_OBJECT, None),
    (moves.MoveView, "GET"): (ref("Move"), None),
    (moves.MovePauseView, "POST"): (_DONE, None),
    (moves.MoveResumeView, "POST"): (_DONE, None),
    (moves.MoveCancelView, "POST"): (_DONE, None),
    (sharding.ShardingInfoView, "GET"): (ref("ShardingInfo"), None),
    (sharding.ShardsView, "POST"): (ref("ShardChange"), _SHARD_ADDED),
    (sharding.LocalShardsView, "POST"): (ref("ShardChange"), _SHARD_ADDED),
    (sharding.ShardView, "DELETE"): (ref("ShardChange"), {"status": "success", "message": "Shard shard_3 removed"}),
    (sharding.ShardsHealthView, "GET"): (ref("ShardsHealth"), {"shards_health": {"shard_0": True}}),
    (sharding.ShardHealthView, "GET"): (ref("ShardHealth"), {"shard_id": "shard_0", "is_healthy": True}),
    (sharding.LocateView, "GET"): (ref("Location"), None),
    (sharding.RedistributeView, "POST"): (_OBJECT, None),
    (sharding.RedistributeAllView, "POST"): (_OBJECT, None),
    (picture.HealthHistoryView, "GET"): (ref("HealthHistory"), None),
}
_CHANGES_ERRORS = (404, 409)


def document(endpoints: list[Any], **context: Any) -> list[Any]:
    """Document the views (a preprocessing hook)."""
    add_components(component_schemas())
    for path, _, method, callback in endpoints:
        view = callback.cls
        if issubclass(view, EnabledView):
            _document_enabled(path, method, view)
    return endpoints


def _document_enabled(path: str, method: str, view: type[EnabledView]) -> None:
    names = re.findall(r"{(\w+)}", path)
    answer, example = _ANSWERS[view, method]
    is_read = method == "GET"
    described = " ".join((view.__doc__ or view.title).split())
    summary, _, more = described.partition(". ")
    describe(
        view,
        method,
        operation_id=_operation_id(path, method),
        tag=path.split("/")[1],
        summary=summary.rstrip("."),
        description=" ".join(filter(None, [more, f"Where it is not enabled: `{view.feature.message}`."])),
        path={name: {"type": "string"} for name in names},
        body=_body(view, method),
        body_required=False,
        example=view.examples.get(method),
        answer={"oneOf": [ref("Message"), answer]} if is_read and answer is not _OBJECT else answer,
        answer_example=example,
        errors=(*(() if is_read else _CHANGES_ERRORS), *((404, 405) if names else (404,) if is_read else ())),
        body_types=(MEDIA_TYPES[0], _FORM),
    )


def _body(view: type[EnabledView], method: str) -> Schema | None:
    """Return the body of a change: its query parameters, which may come there instead."""
    if method not in ("POST", "DELETE"):
        return None
    return {
        "type": "object",
        "properties": {parameter.name: _in_body(parameter.schema) for parameter in view.parameters.get(method, ())},
        "additionalProperties": False,
    }


def _in_body(schema: Mapping[str, Any]) -> Schema:
    words = schema.get("enum")
    if words is not None and "true" in words:
        return {"oneOf": [{"type": "boolean"}, {"type": "null"}, dict(schema)]}
    return {**schema, "type": [schema["type"], "null"]}


def _operation_id(path: str, method: str) -> str:
    """Return the words of the path, with the names in it, and the method."""
    return "_".join([*re.findall(r"\w+", path.replace("-", "_")), method.lower()])
