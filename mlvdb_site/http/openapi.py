"""Building the OpenAPI document: operations from declared query parameters and JSON schemas, shared answers, security.

Imported when the document is generated, never to answer data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import wraps
from typing import Any, Final

from drf_spectacular.utils import extend_schema

from mlvdb_site.http.parameters import QueryParameter

Schema = Mapping[str, Any]

MEDIA_TYPES: Final = ("application/json", "application/msgpack")

_ERRORS: Final[Mapping[int, tuple[str, str]]] = {
    400: ("BadRequest", "The request cannot be understood; `field` names the part of it."),
    401: ("Unauthorized", "The node has API keys and the request has none that is valid."),
    403: ("Forbidden", "Protected mode refuses the request, or its key lacks the scope."),
    404: ("NotFound", "What the request names does not exist."),
    405: ("MethodNotAllowed", "The path has no such method: a word of the API stands where a name was meant."),
    406: ("NotAcceptable", "Nothing is rendered as the Accept header asks."),
    409: ("Conflict", "The request contradicts what is committed."),
    413: ("TooLarge", "The body, or the metadata of a row, exceeds its limit."),
    415: ("UnsupportedMediaType", "The body is neither JSON nor msgpack."),
    503: ("Unavailable", "The request cannot be answered now; `Retry-After` says when to try again."),
    507: ("Full", "Memory or disk has no room for the write."),
}
_TAGS: Final = {
    "vectors": "Vectors by id.",
    "search": "Search and count.",
    "namespaces": "Sets of vectors of one dimension and one metric.",
    "node": "The node itself.",
    "replication": "Copies on other nodes.",
    "sharding": "Slices of the id space.",
    "cluster": "Moves and the whole picture.",
}
_ALWAYS: Final = (400, 401, 403, 406, 503)

_parameters: dict[str, dict[str, Any]] = {}
_components: dict[str, Schema] = {
    "Error": {
        "type": "object",
        "required": ["error", "request_id"],
        "additionalProperties": False,
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "message", "field", "detail"],
                "additionalProperties": False,
                "properties": {
                    "code": {"type": "string", "examples": ["dimension_mismatch"]},
                    "message": {"type": "string"},
                    "field": {"type": ["string", "null"], "description": "The part of the request that is wrong."},
                    "detail": {"type": "object", "additionalProperties": True},
                },
            },
            "request_id": {"type": ["string", "null"]},
        },
    },
    "Message": {
        "type": "object",
        "required": ["message"],
        "properties": {"message": {"type": "string"}},
    },
}


def ref(name: str) -> Schema:
    """Return a reference to a component schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def add_components(schemas: Mapping[str, Schema]) -> None:
    """Put schemas into the document."""
    _components.update(schemas)


def describe(
    view: type,
    method: str,
    *,
    operation_id: str,
    tag: str,
    summary: str,
    description: str = "",
    body: Schema | None = None,
    body_required: bool = True,
    example: Any = None,
    status: int = 200,
    answer: Schema,
    answer_example: Any = None,
    headers: Sequence[str] = (),
    errors: Sequence[int] = (),
    path: Mapping[str, Schema] | None = None,
    body_types: Sequence[str] = MEDIA_TYPES,
    answer_types: Sequence[str] = MEDIA_TYPES,
    request_headers: Sequence[QueryParameter] = (),
) -> None:
    """Document one method of a view; its query parameters come from the view's own declaration."""
    declared: Sequence[QueryParameter] = getattr(view, "parameters", {}).get(method.upper(), ())
    operation: dict[str, Any] = {
        "operationId": operation_id,
        "summary": summary,
        "tags": [tag],
        "parameters": [
            *_path_parameters(path or {}),
            *_query_parameters(declared),
            *[_header_parameter(parameter, parameter.description) for parameter in request_headers],
        ],
        "responses": {
            str(status): {
                "description": "Done." if status < 300 else "",
                "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-ID", *headers)},
                "content": _content(answer, answer_example, answer_types),
            }
        },
    }
    if description:
        operation["description"] = description
    if body is not None:
        operation["requestBody"] = {"required": body_required, "content": _content(body, example, body_types)}
    codes = {*_ALWAYS, *errors, *((413, 415) if body is not None else ())}
    for code in sorted(codes):
        operation["responses"][str(code)] = {"$ref": f"#/components/responses/{_ERRORS[code][0]}"}
    name = method.lower()
    setattr(view, name, extend_schema(operation=operation)(_own(getattr(view, name))))


def hide(view: type, *methods: str) -> None:
    """Leave methods of a view out of the document."""
    for method in methods:
        name = method.lower()
        setattr(view, name, extend_schema(exclude=True)(_own(getattr(view, name))))


def complete(result: dict[str, Any], **context: Any) -> dict[str, Any]:
    """Add what all operations share (a postprocessing hook)."""
    components = result.setdefault("components", {})
    components.setdefault("schemas", {}).update(_components)
    components["responses"] = {
        name: {
            "description": text,
            "headers": {
                "X-Request-ID": {"$ref": "#/components/headers/X-Request-ID"},
                **({"Retry-After": {"schema": {"type": "integer"}}} if code == 503 else {}),
            },
            "content": {media_type: {"schema": ref("Error")} for media_type in MEDIA_TYPES},
        }
        for code, (name, text) in _ERRORS.items()
    }
    components["parameters"] = dict(sorted(_parameters.items()))
    components["headers"] = {
        "X-Request-ID": _header("The id of the request, taken from the client or made by the node."),
        "X-MLVDB-Complete": _header("Whether every shard answered.", {"type": "string", "enum": ["true", "false"]}),
        "X-MLVDB-Shards": _header("Shards that answered, of all: `ok/total`."),
        "X-MLVDB-Failed": _header("Labels of the shards that did not answer."),
        "X-MLVDB-Stale": _header("`label:lag` of the copies that were behind, or `label:unknown`."),
        "Link": _header('The next page: `<URL>; rel="next"`; absent on the last.'),
    }
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "An API key (`manage.py create_api_key`)."},
        "session": {"type": "apiKey", "in": "cookie", "name": "sessionid", "description": "A login in the admin."},
    }
    result["tags"] = [{"name": name, "description": text} for name, text in _TAGS.items()]
    result["security"] = [{}, {"key": []}, {"session": []}]
    for operations in result["paths"].values():
        for operation in operations.values():
            operation.pop("security", None)
    return result


def _own(handler: Any) -> Any:
    """Return a function around a handler, so that what is said of it is not said of the views that share it."""
    inner = getattr(handler, "__wrapped__", handler)

    @wraps(inner)
    def documented(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        return inner(self, request, *args, **kwargs)

    vars(documented).pop("kwargs", None)
    return documented


def _content(schema: Schema, example: Any, media_types: Sequence[str]) -> dict[str, Any]:
    content: dict[str, Any] = {media_type: {"schema": schema} for media_type in media_types}
    if example is not None and "application/json" in content:
        content["application/json"]["example"] = example
    return content


def _path_parameters(parameters: Mapping[str, Schema]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": schema.get("description", ""),
            "schema": {key: value for key, value in schema.items() if key != "description"},
        }
        for name, schema in parameters.items()
    ]


def _query_parameters(declared: Sequence[QueryParameter]) -> list[Schema]:
    entries = []
    for parameter in declared:
        schema: dict[str, Any] = {"schema": dict(parameter.schema)}
        entry: dict[str, Any] = {
            "name": parameter.name,
            "in": "query",
            "description": parameter.description,
            **({"content": {"application/json": schema}} if parameter.json else schema),
        }
        if parameter.required:
            entry["required"] = True
        entries.append(_shared(entry))
    for parameter in declared:
        if parameter.header is not None:
            entries.append(_header_parameter(parameter, f"The query parameter `{parameter.name}`, which wins."))
    return entries


def _header_parameter(parameter: QueryParameter, description: str) -> Schema:
    return _shared(
        {
            "name": parameter.header,
            "in": "header",
            "description": description,
            "schema": dict(parameter.schema),
        }
    )


def _shared(entry: dict[str, Any]) -> Schema:
    """Return a reference to a parameter that others have too; another one of the same name stands where it is."""
    if _parameters.setdefault(entry["name"], entry) == entry:
        return {"$ref": f"#/components/parameters/{entry['name']}"}
    return entry


def _header(description: str, schema: Schema | None = None) -> dict[str, Any]:
    return {"description": description, "schema": dict(schema or {"type": "string"})}
