"""The id of a request: in every answer, in every error, and only in a sane form."""

from __future__ import annotations

import logging
import re

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory

from mlvdb_site.http.request_id import RequestIdMiddleware, current_request_id
from mlvdb_site.logging_config import LineFormatter, RequestIdFilter
from vectors.runtime import Readiness

pytestmark = pytest.mark.django_db

MADE_HERE = re.compile(r"[0-9a-f]{32}")


def test_an_answer_carries_an_id_made_by_the_node(node_client: Client) -> None:
    first, second = node_client.get("/healthz"), node_client.get("/healthz")

    assert MADE_HERE.fullmatch(first.headers["X-Request-ID"])
    assert first.headers["X-Request-ID"] != second.headers["X-Request-ID"]


def test_an_id_sent_by_the_client_comes_back(node_client: Client) -> None:
    answer = node_client.get("/healthz", headers={"X-Request-ID": "order-7.retry_2"})

    assert answer.headers["X-Request-ID"] == "order-7.retry_2"


@pytest.mark.parametrize("sent", ["", " ", "a b", "x" * 129, "a\tb", "ключ", 'a"b', "a\n"])
def test_an_id_that_could_break_a_log_line_is_replaced(node_client: Client, sent: str) -> None:
    answer = node_client.get("/healthz", headers={"X-Request-ID": sent})

    assert MADE_HERE.fullmatch(answer.headers["X-Request-ID"])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("get", "/no/such/path", 404), ("post", "/health", 405), ("get", "/schema/", 404), ("get", "/health/", 404)],
)
def test_errors_outside_the_views_have_the_one_shape_and_the_id(
    node_client: Client, method: str, path: str, status: int
) -> None:
    answer = getattr(node_client, method)(path, headers={"X-Request-ID": "abc"})

    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Request-ID"] == "abc"
    body = answer.json()
    assert set(body) == {"error", "request_id"}
    assert body["request_id"] == "abc"
    assert body["error"]["code"]
    assert body["error"]["message"]


def test_an_unexpected_exception_is_a_500_in_the_one_shape(
    node_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, request: HttpRequest) -> HttpResponse:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("mlvdb_site.http.health.AliveView.get", broken)

    answer = node_client.get("/healthz")

    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret detail" not in answer.content.decode()
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]


def test_the_log_has_the_traceback_of_a_500_and_nothing_of_a_503(
    node_client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def starting() -> Readiness:
        return Readiness(False, 0.0)

    monkeypatch.setattr("vectors.runtime.readiness", starting)
    assert node_client.get("/readyz").status_code == 503
    assert caplog.records == []

    monkeypatch.setattr("vectors.runtime.readiness", lambda: 1 / 0)
    assert node_client.get("/readyz").status_code == 500
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_the_admin_keeps_its_html_errors(node_client: Client) -> None:
    node_client.force_login(_superuser())

    answer = node_client.get("/admin/no/such/page/")

    assert answer.status_code == 404
    assert answer.headers["Content-Type"].startswith("text/html")


def test_log_lines_of_a_request_name_it_and_stay_on_one_line() -> None:
    lines: list[str] = []

    def view(request: HttpRequest) -> HttpResponse:
        record = logging.LogRecord("vectors", logging.INFO, __file__, 1, "two\nlines n=%d", (3,), None)
        RequestIdFilter().filter(record)
        lines.append(LineFormatter().format(record))
        return HttpResponse()

    RequestIdMiddleware(view)(RequestFactory().get("/", headers={"X-Request-ID": "abc"}))

    assert lines[0].endswith("INFO vectors two\\nlines n=3 request_id=abc")
    assert current_request_id() == ""


def _superuser() -> object:
    from django.contrib.auth.models import User

    return User.objects.create_superuser("root", password="x")
