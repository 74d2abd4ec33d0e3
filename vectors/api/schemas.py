"""JSON schemas of the bodies and answers of the vector endpoints, with the limits of this node's settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from django.conf import settings

from mlvdb_site.http.openapi import Schema, ref
from vectors.api.body import METRICS
from vectors.api.options import NAME_SCHEMA
from vectors.api.searches import DEFAULT_TOP_K

FLOAT32_MAX: Final = 3.4028234663852886e38
INT64: Final = 2**63
_PATH = r"([^_]|_(?!_))+"


def component_schemas() -> dict[str, Schema]:
    """Return the schemas that operations refer to, by name."""
    return {
        "Id": {
            "description": "An integer of 64 bits, or a string of up to 255 bytes; one in UUID form is a UUID.",
            "oneOf": [
                {"type": "integer", "minimum": -INT64, "maximum": INT64 - 1},
                {"type": "string", "minLength": 1, "maxLength": 255},
            ],
        },
        "Values": {
            "description": "In msgpack also `bin`: raw little-endian float32, which is how msgpack answers have it.",
            "type": "array",
            "items": {"type": "number", "minimum": -FLOAT32_MAX, "maximum": FLOAT32_MAX},
            "minItems": 1,
            "maxItems": settings.MLVDB_MAX_DIMENSION,
        },
        "Metadata": {
            "description": f"A JSON object of up to {settings.MLVDB_MAX_METADATA_BYTES} bytes.",
            "type": "object",
            "additionalProperties": True,
        },
        "Seq": {
            "description": "Opaque tokens, one for each shard label; send them as `min_seq`.",
            "type": "object",
            "additionalProperties": {"type": "string"},
        },
        "NewVector": object_schema(
            {"id": optional_schema(ref("Id")), "values": ref("Values"), "metadata": optional_schema(ref("Metadata"))},
            required=("values",),
        ),
        "Vector": object_schema(
            {"id": ref("Id"), "values": ref("Values"), "metadata": ref("Metadata")},
            required=("id", "values", "metadata"),
        ),
        "Hit": object_schema(
            {"id": ref("Id"), "values": ref("Values"), "metadata": ref("Metadata"), "score": {"type": "number"}},
            required=("id", "score"),
        ),
        "Deletion": {
            "oneOf": [
                object_schema(
                    {"ids": list_schema(ref("Id"), settings.MLVDB_MAX_BATCH), "filter": {"type": "null"}},
                    required=("ids",),
                ),
                object_schema(
                    {"filter": {"allOf": [ref("Filter"), {"minProperties": 1}]}, "ids": {"type": "null"}},
                    required=("filter",),
                ),
            ]
        },
        "Search": _search(),
        "Filter": _filter(),
        "ShardAccount": {
            "type": "object",
            "required": ["shard", "copy", "lag", "took_ms", "strategy", "candidates"],
            "properties": {
                "shard": {"type": "string"},
                "copy": {"type": "string"},
                "lag": {
                    "type": ["integer", "null"],
                    "description": "Operations that the copy may lack; null when nobody can tell.",
                },
                "took_ms": {"type": "number"},
                "strategy": {
                    "type": "string",
                    "enum": ["exact", "index", "index+exact", ""],
                    "description": "How rows were found: by looking at all, by indexes, or both; empty with an error.",
                },
                "candidates": {
                    "type": "integer",
                    "description": "Rows that came so near to the best that their exact scores were compared.",
                },
                "error": {"type": "string", "description": "Why the shard has no part in the answer."},
            },
        },
        "NamespaceSettings": object_schema(
            {
                "dimension": optional_schema(
                    {"type": "integer", "minimum": 1, "maximum": settings.MLVDB_MAX_DIMENSION}
                ),
                "metric": optional_schema({"type": "string", "enum": list(METRICS)}),
                "recall_target": optional_schema({"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
                "picture": {
                    "description": "WIDTHxHEIGHT when the values of a row are the grey levels of a picture.",
                    "type": ["string", "null"],
                    "pattern": "^([1-9][0-9]{0,4}x[1-9][0-9]{0,4})?$",
                },
            }
        ),
        "Namespace": object_schema(
            {
                "name": dict(NAME_SCHEMA),
                "dimension": {"type": "integer"},
                "metric": {"type": "string", "enum": list(METRICS)},
                "recall_target": {"type": "number"},
                "measured_recall": {
                    "type": ["number", "null"],
                    "description": "Share of the true neighbours that searches by index find; null: all are exact.",
                },
                "recall_measured_at": {
                    "type": ["string", "null"],
                    "format": "date-time",
                    "description": "When it was measured; null: when the indexes were tuned.",
                },
                "picture": {"type": "string"},
                "count": {"type": "integer"},
                "segments": {"type": "integer"},
                "indexed_rows": {"type": "integer", "description": "Rows in segments with an index."},
                "tail_rows": {"type": "integer"},
                "size_bytes": {"type": "integer"},
            },
            required=("name", "dimension", "metric", "recall_target", "count"),
        ),
        "StorageInfo": {
            "type": "object",
            "required": [
                "storage_type",
                "total_vectors",
                "storage_size_bytes",
                "namespaces",
                "vectors_per_namespace",
                "namespace_count",
            ],
            "properties": {
                "storage_type": {"const": "in-memory"},
                "total_vectors": {"type": "integer"},
                "storage_size_bytes": {"type": "integer"},
                "namespaces": {"type": "array", "items": {"type": "string"}},
                "vectors_per_namespace": {"type": "object", "additionalProperties": {"type": "integer"}},
                "namespace_count": {"type": "integer"},
                "replication": {"type": "object", "additionalProperties": True},
                "sharding": {"type": "object", "additionalProperties": True},
            },
        },
    }


def _search() -> Schema:
    properties: dict[str, Schema] = {
        "query": {},
        "id": {},
        "top_k": optional_schema(
            {"type": "integer", "minimum": 1, "maximum": settings.MLVDB_MAX_TOP_K, "default": DEFAULT_TOP_K}
        ),
        "metric": optional_schema({"type": "string", "enum": list(METRICS)}),
        "filter": optional_schema(ref("Filter")),
        "recall": optional_schema({"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
        "exact": {"type": ["boolean", "null"], "default": False},
        "with_values": {"type": ["boolean", "null"], "default": True},
        "with_metadata": {"type": ["boolean", "null"], "default": True},
        "score_threshold": {
            "description": "Only scores at least (l2: at most) this good.",
            "type": ["number", "null"],
        },
        "offset": optional_schema(
            {"type": "integer", "minimum": 0, "maximum": settings.MLVDB_MAX_OFFSET, "default": 0}
        ),
    }
    return {
        "description": "A search by a query vector, or by the vector of an id.",
        "oneOf": [
            object_schema({**properties, "query": ref("Values"), "id": {"type": "null"}}, required=("query",)),
            object_schema({**properties, "id": ref("Id"), "query": {"type": "null"}}, required=("id",)),
        ],
    }


def _filter() -> Schema:
    scalar: Schema = {"type": ["string", "number", "boolean"]}
    ordered: Schema = {"type": ["string", "number"]}
    text: Schema = {"type": "string"}
    return {
        "description": (
            "Django lookups on metadata keys and `id`; all must hold. Dots reach into objects."
            " `AND` and `OR` take lists of filters, `NOT` a filter."
        ),
        "type": "object",
        "properties": {
            "AND": {"type": "array", "items": ref("Filter"), "maxItems": settings.MLVDB_MAX_FILTER_CONDITIONS},
            "OR": {
                "type": "array",
                "items": ref("Filter"),
                "minItems": 1,
                "maxItems": settings.MLVDB_MAX_FILTER_CONDITIONS,
            },
            "NOT": ref("Filter"),
        },
        "patternProperties": {
            f"^(?!(AND|OR|NOT)$){_PATH}$": {"type": ["string", "number", "boolean", "null"]},
            f"^{_PATH}__(exact|ne)$": {"type": ["string", "number", "boolean", "null"]},
            f"^{_PATH}__in$": {"type": "array", "items": scalar, "maxItems": settings.MLVDB_MAX_FILTER_VALUES},
            f"^{_PATH}__(lt|lte|gt|gte)$": ordered,
            f"^{_PATH}__range$": {
                "oneOf": [
                    {"type": "array", "items": {"type": kind}, "minItems": 2, "maxItems": 2}
                    for kind in ("number", "string")
                ]
            },
            f"^{_PATH}__contains$": scalar,
            f"^{_PATH}__(startswith|endswith|icontains)$": text,
            f"^{_PATH}__isnull$": {"type": "boolean"},
        },
        "additionalProperties": False,
        "maxProperties": settings.MLVDB_MAX_FILTER_CONDITIONS,
    }


def object_schema(properties: Mapping[str, Schema], *, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return an object with these properties and no others."""
    schema: dict[str, Any] = {"type": "object", "properties": dict(properties), "additionalProperties": False}
    if required:
        schema["required"] = list(required)
    return schema


def list_schema(items: Schema, maximum: int) -> Schema:
    """Return a list of one to `maximum` entries."""
    return {"type": "array", "items": items, "minItems": 1, "maxItems": maximum}


def optional_schema(schema: Schema) -> Schema:
    """Return a schema, or null."""
    return {"oneOf": [schema, {"type": "null"}]}


def written_schema(properties: Mapping[str, Schema]) -> Schema:
    """Return what a write answers, with further properties."""
    return object_schema(
        {"status": {"const": "success"}, "message": {"type": "string"}, **properties, "seq": ref("Seq")},
        required=("status", "message", *properties, "seq"),
    )


def explained_schema(results: Schema) -> Schema:
    """Return the answer of a search with `explain=1`."""
    return object_schema(
        {
            "results": results,
            "complete": {"type": "boolean"},
            "shards": {"type": "array", "items": ref("ShardAccount")},
            "took_ms": {"type": "number"},
        },
        required=("results", "complete", "shards", "took_ms"),
    )
