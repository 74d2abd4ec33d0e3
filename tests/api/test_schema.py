"""The OpenAPI document: current, complete, and true to what the node answers."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml
from django.core.management import call_command

from tests.api.conftest import Api
from tests.api.documented import COMMITTED
from tests.api.documented import document as committed
from tests.api.routes import api_routes


@pytest.fixture(scope="module")
def document() -> dict:
    """The committed document."""
    return committed()


def test_the_committed_document_is_current(tmp_path: Path) -> None:
    fresh = tmp_path / "openapi.yaml"

    call_command("spectacular", "--validate", "--fail-on-warn", "--file", str(fresh))

    assert fresh.read_text() == COMMITTED.read_text(), "run: manage.py spectacular --file docs/openapi.yaml"


def test_every_route_and_method_is_in_the_document(document: dict) -> None:
    hidden = {("/vectors/batch", "GET"), ("/vectors/fetch", "GET"), ("/vectors/delete", "GET")}
    hidden |= {(path, "PATCH") for path, _ in hidden}
    for route in api_routes():
        if route.view is None:
            continue
        documented = next(
            operations for path, operations in document["paths"].items() if _same(path, route.path, route)
        )
        for method in route.methods:
            if method != "OPTIONS" and (route.path, method) not in hidden:
                operation = documented[method.lower()]
                assert operation["summary"]
                assert "400" in operation["responses"]


def test_every_declared_query_parameter_is_in_the_document(document: dict) -> None:
    parameters = document["components"]["parameters"]
    for route in api_routes():
        if route.view is None:
            continue
        documented = next(
            operations for path, operations in document["paths"].items() if _same(path, route.path, route)
        )
        for method, declared in route.view.parameters.items():
            if method.lower() not in documented:
                continue
            names = set()
            for entry in documented[method.lower()].get("parameters", []):
                names.add((parameters[entry["$ref"].rsplit("/", 1)[1]] if "$ref" in entry else entry)["name"])
            assert {parameter.name for parameter in declared} <= names


ANSWERS = [
    ("POST", "/vectors", {"id": "a", "values": [1, 2, 3]}, "/vectors"),
    ("PUT", "/vectors/batch", {"vectors": [{"values": [1, 2, 3]}]}, "/vectors/batch"),
    ("GET", "/vectors/1", None, "/vectors/{row_id}"),
    ("GET", "/vectors/99", None, "/vectors/{row_id}"),
    ("PATCH", "/vectors/1", {"metadata": {"a": 1}}, "/vectors/{row_id}"),
    ("POST", "/vectors/fetch", {"ids": [1, 99]}, "/vectors/fetch"),
    ("POST", "/search", {"id": 1}, "/search"),
    ("POST", "/search", {"query": [1, 2, 3], "with_values": False, "with_metadata": False}, "/search"),
    ("POST", "/search?explain=1", {"id": 1}, "/search"),
    ("POST", "/search", {"query": [1]}, "/search"),
    ("POST", "/search/batch", {"searches": [{"id": 1}]}, "/search/batch"),
    ("POST", "/search/batch?explain=1", {"searches": [{"id": 1}]}, "/search/batch"),
    ("POST", "/count", {"filter": {"n__gt": 1}}, "/count"),
    ("GET", "/namespaces", None, "/namespaces"),
    ("GET", "/namespaces?detail=1", None, "/namespaces"),
    ("GET", "/namespaces/vectors?limit=2", None, "/namespaces/vectors"),
    ("PUT", "/namespaces/b", {"dimension": 4, "picture": "2x2"}, "/namespaces/{name}"),
    ("DELETE", "/namespaces/default", None, "/namespaces/{name}"),
    ("GET", "/storage/info", None, "/storage/info"),
    ("DELETE", "/vectors", {"ids": [1]}, "/vectors"),
    ("POST", "/vectors/delete", {"filter": {"n": 3}}, "/vectors/delete"),
    ("GET", "/health", None, "/health"),
    ("GET", "/", None, "/"),
    ("GET", "/replication/info", None, "/replication/info"),
    ("POST", "/sharding/shards", {}, "/sharding/shards"),
]


@pytest.mark.parametrize(("method", "path", "body", "documented"), ANSWERS)
def test_answers_and_bodies_are_as_documented(
    api: Api, document: dict, method: str, path: str, body: object, documented: str
) -> None:
    rows = [{"id": number, "values": [number, 1, 2], "metadata": {"n": number}} for number in range(5)]
    api.put("/vectors/batch", {"vectors": rows})
    operation = document["paths"][documented][method.lower()]

    response = api.send(method, path, b"" if body is None else body)

    answer = operation["responses"][str(response.status_code)]
    if "$ref" in answer:
        answer = document["components"]["responses"][answer["$ref"].rsplit("/", 1)[1]]
    _validate(response.json(), answer["content"]["application/json"]["schema"], document)
    if body is not None and response.status_code < 300:
        _validate(body, operation["requestBody"]["content"]["application/json"]["schema"], document)


def test_every_example_in_the_document_is_of_its_own_schema(document: dict) -> None:
    checked = 0
    for operations in document["paths"].values():
        for operation in operations.values():
            contents = [answer.get("content", {}) for answer in operation["responses"].values()]
            contents.append(operation.get("requestBody", {}).get("content", {}))
            for content in contents:
                media = content.get("application/json", {})
                if "example" in media:
                    _validate(media["example"], media["schema"], document)
                    checked += 1
    assert checked > 20


@pytest.mark.parametrize(
    "body",
    [
        {"query": [1, 2, 3], "filter": {"price__lt": 10, "color__in": ["red"], "author.country": "DE"}},
        {"query": [1], "filter": {"AND": [{"a": 1}, {"NOT": {"b__isnull": True}}], "OR": [{"id__gt": 5}]}},
        {"query": [1], "filter": {"a__range": [1, 2.5], "b__ne": None, "c__icontains": "x", "a_b": "y"}},
        {"id": "a", "top_k": None, "metric": "l2", "recall": 0.5},
    ],
)
def test_searches_that_work_are_in_the_schema(document: dict, body: object) -> None:
    _validate(body, {"$ref": "#/components/schemas/Search"}, document)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"query": [1], "id": 1},
        {"query": []},
        {"query": [1e39]},
        {"query": [1], "top_k": 0},
        {"query": [1], "filter": {"a__near": 1}},
        {"query": [1], "filter": {"a__in": 1}},
        {"query": [1], "filter": {"a__isnull": "yes"}},
        {"query": [1], "limit": 1},
    ],
)
def test_searches_that_are_refused_are_not(standing_api: Api, document: dict, body: object) -> None:
    assert standing_api.post("/search", body).status_code == 400
    with pytest.raises(jsonschema.ValidationError):
        _validate(body, {"$ref": "#/components/schemas/Search"}, document)


def test_the_document_is_served_as_json_and_as_yaml(standing_api: Api) -> None:
    as_json = standing_api.get("/schema")
    as_yaml = standing_api.get("/schema?format=yaml")

    assert as_json["Content-Type"] == "application/json"
    assert as_json.json()["openapi"].startswith("3.")
    assert yaml.safe_load(as_yaml.content) == as_json.json()


def _validate(value: object, schema: dict, document: dict) -> None:
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def _same(documented: str, path: str, route: object) -> bool:
    return documented.replace("{", "").replace("}", "") == path
