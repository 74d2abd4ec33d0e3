"""The API as pages: every endpoint renders, and every example in a form works when it is sent."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from tests.api.conftest import Api
from tests.api.routes import Route, api_routes

PAGES = [route for route in api_routes() if route.view is not None and route.path not in ("/metrics",)]
#: What a page cannot do without.
QUERIES = {"/sharding/locate": "?id=1"}
REMOTE = re.compile(r"""(?:src|href|action)=["'](?:https?:)?//(?!localhost)""")


@pytest.mark.parametrize("route", PAGES, ids=lambda route: route.path)
def test_every_endpoint_renders_as_a_page(standing_api: Api, route: Route, wait_for: Callable[..., Any]) -> None:
    path = route.path.replace("row_id", "1") + QUERIES.get(route.path, "")
    wait_for(lambda: standing_api.get("/readyz").status_code == 200, what="the node's readiness")

    response = standing_api.page(path)

    text = response.content.decode()
    assert response.status_code == 200, text
    assert response["Content-Type"] == "text/html; charset=utf-8"
    assert "<h1>" in text
    assert not REMOTE.search(text), "a page loads nothing from elsewhere"
    for method in route.methods:
        if method in ("POST", "PUT", "PATCH", "DELETE"):
            assert f'data-method="{method}"' in text


@pytest.mark.parametrize("route", PAGES, ids=lambda route: route.path)
def test_every_query_parameter_of_an_endpoint_is_on_its_page(standing_api: Api, route: Route) -> None:
    text = standing_api.page(route.path).content.decode()

    for parameters in route.view.parameters.values():
        for parameter in parameters:
            assert re.search(rf'<(?:input|select)[^>]* name="{parameter.name}"', text), parameter.name


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_the_documentation_loads_nothing_from_elsewhere(standing_api: Api, path: str) -> None:
    response = standing_api.page(path)

    assert response.status_code == 200
    assert not REMOTE.search(response.content.decode())
    assert "default-src 'self'" in response["Content-Security-Policy"]


EXAMPLES = [
    ("POST", "/vectors", 201),
    ("DELETE", "/vectors", 200),
    ("PUT", "/vectors/batch", 200),
    ("POST", "/vectors/fetch", 200),
    ("POST", "/vectors/delete", 200),
    ("PATCH", "/vectors/example-1", 200),
    ("POST", "/search", 200),
    ("POST", "/search/batch", 200),
    ("POST", "/count", 200),
    ("PUT", "/namespaces/another", 200),
    ("PUT", "/namespaces/default", 200),
    ("DELETE", "/namespaces/default", 200),
    ("POST", "/log/level", 200),
]


@pytest.mark.parametrize("namespace", ["default", "wide"])
@pytest.mark.parametrize(("method", "path", "status"), EXAMPLES)
def test_the_example_of_every_form_works(
    api: Api, namespace: str, method: str, path: str, status: int, restored_log_level: None
) -> None:
    dimension = 3 if namespace == "default" else 64
    seeded = [{"id": "example-1", "values": [0.5] * dimension, "metadata": {"color": "red"}}]
    assert api.put(f"/vectors/batch?namespace={namespace}", {"vectors": seeded}).status_code == 200
    if path.startswith("/namespaces/"):
        path = path.replace("default", namespace)
    elif path != "/log/level":
        path = f"{path}?namespace={namespace}"

    form = _form(api.page(path).content.decode(), method)
    response = api.send(method, form.action, form.body.encode())

    assert form.action == path
    assert response.status_code == status, response.content


def test_an_insert_example_works_on_an_empty_node(api: Api) -> None:
    form = _form(api.page("/vectors").content.decode(), "POST")

    assert api.post("/vectors", form.body.encode()).status_code == 201
    assert api.post("/search", _form(api.page("/search").content.decode(), "POST").body.encode()).json()


def test_a_search_sent_from_its_page_answers_a_page(standing_api: Api) -> None:
    response = standing_api.post("/search", {"id": 1}, headers={"Accept": "text/html; q=1.0, */*"})

    assert response.status_code == 200
    assert "&quot;score&quot;" in response.content.decode()


def test_a_form_keeps_what_was_sent_from_it(standing_api: Api) -> None:
    browser = {"Accept": "text/html; q=1.0, */*"}
    for sent in (b'{"id": 1, "top_k": 2}', b'{"id": 1, "top_k": }'):
        text = standing_api.post("/search", sent, headers=browser).content.decode()

        form = re.search(r"<textarea[^>]*>(.*?)</textarea>", text, re.DOTALL)
        assert html.unescape(form[1]).encode() == sent


def test_an_error_is_a_page_for_a_browser(standing_api: Api) -> None:
    response = standing_api.page("/vectors/nobody")

    assert response.status_code == 404
    assert "vector_not_found" in response.content.decode()


def test_the_page_of_a_reserved_word_is_shown_when_no_row_has_that_id(standing_api: Api) -> None:
    for word in ("batch", "fetch", "delete"):
        assert standing_api.page(f"/vectors/{word}").status_code == 200
        assert standing_api.get(f"/vectors/{word}").status_code == 404


def test_long_answers_are_shortened_with_a_note_on_the_page_only(api: Api) -> None:
    rows = [{"id": number, "values": [1.25] * 300} for number in range(200)]
    api.put("/vectors/batch", {"vectors": rows})

    text = api.page("/namespaces/vectors").content.decode()

    assert "… 292 more" in text
    assert "… 150 more" in text
    assert "Shortened on this page" in text
    assert len(text) < 60_000
    assert len(api.get("/namespaces/vectors").json()) == 200


def test_markup_in_metadata_is_shown_as_text(api: Api) -> None:
    api.post("/vectors", {"id": 1, "values": [1], "metadata": {"a": "<script>alert(1)</script>"}})

    text = api.page("/vectors/1").content.decode()

    assert "<script>alert(1)" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_the_root_leads_to_every_noun_and_to_the_pages(standing_api: Api) -> None:
    body = standing_api.get("/").json()

    assert body["endpoints"]["search"] == "http://localhost/search"
    assert body["pages"]["admin"] == "http://localhost/admin/"
    for url in [*body["endpoints"].values(), *body["pages"].values()]:
        response = standing_api.page(url.removeprefix("http://localhost"))
        assert response.status_code in (200, 302), url


class _Form:
    def __init__(self, action: str, body: str) -> None:
        self.action = action
        self.body = body


def _form(page: str, method: str) -> _Form:
    """Return the form of a method as a browser would send it."""
    form = re.search(rf'<form action="([^"]*)" method="POST" data-method="{method}".*?</form>', page, re.DOTALL)
    assert form is not None, page
    text = re.search(r"<textarea[^>]*>(.*?)</textarea>", form[0], re.DOTALL)
    body = html.unescape(text[1]) if text else ""
    if body:
        orjson.loads(body)
    return _Form(html.unescape(form[1]), body)
