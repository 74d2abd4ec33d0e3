"""The node's own endpoints in OpenAPI: the root, health, metrics, the level of the log."""

from __future__ import annotations

from typing import Any

from mlvdb_site.http.health import AliveView, HealthView, LogLevelView, MetricsView, ReadyView
from mlvdb_site.http.openapi import Schema, describe, ref
from mlvdb_site.http.root import ApiRootView
from mlvdb_site.logging_config import LEVELS

_OBJECT: Schema = {"type": "object", "additionalProperties": True}
_STATUS: Schema = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}
_URLS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}


def document(endpoints: list[Any], **context: Any) -> list[Any]:
    """Document the views (a preprocessing hook)."""
    describe(
        ApiRootView,
        "GET",
        operation_id="root",
        tag="node",
        summary="Where everything is",
        answer={"type": "object", "properties": {"endpoints": _URLS, "pages": _URLS}},
    )
    describe(
        HealthView,
        "GET",
        operation_id="health",
        tag="node",
        summary="The node and its background processes",
        answer=_STATUS,
    )
    describe(AliveView, "GET", operation_id="alive", tag="node", summary="Whether the node answers", answer=_STATUS)
    describe(
        ReadyView,
        "GET",
        operation_id="ready",
        tag="node",
        summary="Whether the node serves at full speed; 503 with the progress until then",
        answer=_STATUS,
    )
    describe(
        MetricsView,
        "GET",
        operation_id="metrics",
        tag="node",
        summary="Prometheus metrics of the whole node",
        answer={"type": "string"},
        answer_types=("text/plain",),
    )
    describe(
        LogLevelView,
        "POST",
        operation_id="log_level",
        tag="node",
        summary="Change the level of the node's log",
        description="The level is given in the query or in the body.",
        body={
            "type": "object",
            "properties": {"level": {"type": ["string", "null"], "enum": [*LEVELS, None]}},
            "additionalProperties": False,
        },
        body_required=False,
        example={"level": "debug"},
        answer={**_OBJECT, "required": ["status", "message"], "allOf": [ref("Message")]},
    )
    return endpoints
