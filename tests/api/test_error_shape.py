"""Every route answers every kind of error in the one shape."""

from __future__ import annotations

import logging

import pytest

from tests.api.conftest import Api, checked_error
from tests.api.routes import Route, api_routes

ROUTES = api_routes()
SCHEMA_PAGES = ("/docs", "/redoc")
each_route = pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
each_view = pytest.mark.parametrize("route", [route for route in ROUTES if route.view], ids=lambda route: route.path)


@each_route
def test_a_method_that_is_not_there(standing_api: Api, route: Route) -> None:
    missing = next(method for method in ("TRACE", "PUT", "POST") if method not in route.methods)

    response = standing_api.send(missing, route.path)

    error = checked_error(response)
    assert response.status_code == 405
    assert error["code"] == "method_not_allowed"
    assert error["field"] == "method"
    assert set(response["Allow"].split(", ")) == {*route.methods, *(["HEAD"] if "GET" in route.methods else [])}


@each_view
def test_a_query_parameter_that_is_not_there(standing_api: Api, route: Route) -> None:
    for method in route.methods:
        if method != "OPTIONS":
            error = checked_error(standing_api.send(method, f"{route.path}?colour=red"))
            assert error["code"] == "unknown_field"
            assert error["field"] == "colour"


@each_view
def test_a_form_that_is_not_there(standing_api: Api, route: Route) -> None:
    if route.path == "/metrics":
        pytest.skip("the metrics have one form, whatever a scraper accepts")
    method = route.methods[0]

    by_header = standing_api.send(method, route.path, headers={"Accept": "image/png"})
    by_parameter = standing_api.send(method, f"{route.path}?format=pdf")

    assert by_header.status_code == 406
    assert checked_error(by_header)["field"] == "Accept"
    assert by_parameter.status_code == 400
    assert checked_error(by_parameter)["field"] == "format"


@each_route
def test_a_foreign_request_to_a_node_without_keys(standing_api: Api, route: Route) -> None:
    response = standing_api.send(route.methods[0], route.path, REMOTE_ADDR="192.0.2.7")

    if route.path in ("/healthz", "/readyz"):
        return
    assert response.status_code == 403
    assert checked_error(response)["code"] == "protected_mode"


@each_view
def test_a_failure_that_nobody_expected(
    standing_api: Api, route: Route, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self, request, *args, **kwargs):
        raise ZeroDivisionError("nobody expected this")

    method = route.methods[0]
    monkeypatch.setattr(route.view, method.lower(), fail)
    # Where a feature is not enabled its endpoints say so before a method of theirs runs.
    monkeypatch.setattr("cluster.api.enabled.is_enabled", lambda feature: True)

    with caplog.at_level(logging.ERROR, logger="django.request"):
        response = standing_api.send(method, route.path)

    assert response.status_code == 500
    assert checked_error(response)["code"] == "internal_error"
    assert "nobody expected this" not in response.content.decode()
    assert "nobody expected this" in caplog.text


def test_a_path_that_leads_nowhere(standing_api: Api) -> None:
    for path in ("/nothing", "/vectors/", "/search/", "/namespaces/", "/replication", "/sharding/shards/a/b", "/.env"):
        response = standing_api.get(path)
        assert response.status_code == 404, path
        assert checked_error(response)["code"] == "not_found"


def test_a_path_with_a_trailing_slash_is_not_redirected(standing_api: Api) -> None:
    for route in ROUTES:
        response = standing_api.get(f"{route.path.rstrip('/')}/")
        assert not 300 <= response.status_code < 400, route.path


def test_an_error_that_may_pass_says_when_to_come_back(standing_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from vectors.errors import CheckpointBehind
    from vectors.query_processor import LocalQueryProcessor

    def full(self, *args, **kwargs):
        raise CheckpointBehind("the tail is full", retry_after_s=2.2, detail={"tail_bytes": 7})

    monkeypatch.setattr(LocalQueryProcessor, "insert", full)

    response = standing_api.post("/vectors", {"values": [1, 2, 3]})

    assert response.status_code == 503
    assert response["Retry-After"] == "3"
    assert checked_error(response) == {
        "code": "checkpoint_behind",
        "message": "the tail is full",
        "field": None,
        "detail": {"tail_bytes": 7},
    }
