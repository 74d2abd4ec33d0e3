"""The browsable API and the documentation of a real node, in a real browser, with no other host to ask."""

from __future__ import annotations

import pytest

from tests.browser import digits

pytestmark = [pytest.mark.browser, pytest.mark.processes]


@pytest.fixture(scope="module")
def filled(node):
    """The node with the first 100 digits."""
    digits.load(node, rows=100)
    return node


def answer(page):
    """Return the answer that the page shows."""
    return page.locator(".response-info").inner_text()


def test_the_root_leads_to_the_endpoints_the_docs_and_the_admin(page, node):
    page.goto(f"{node.base_url}/")
    assert "HTTP 200 OK" in answer(page)
    page.get_by_role("link", name=f"{node.base_url}/search", exact=True).click()
    page.get_by_role("heading", name="Search", exact=True).wait_for()
    assert page.get_by_role("link", name="Docs").get_attribute("href") == "/docs"
    assert page.get_by_role("link", name="Admin").get_attribute("href") == "/admin/"


def test_the_form_of_search_is_filled_in_with_a_search_that_works(page, filled):
    page.goto(f"{filled.base_url}/search?namespace=digits")
    page.locator("#post-form button").click()
    page.get_by_text('"score"').first.wait_for()
    text = answer(page)
    assert "HTTP 200 OK" in text
    assert '"id": "digit-0001"' in text
    assert text.count('"score"') == 5


def test_a_bad_search_shows_the_error_and_the_field(page, filled):
    page.goto(f"{filled.base_url}/search?namespace=digits")
    page.locator("#post-form textarea").fill('{"query": [1, 2], "top_k": 3}')
    page.locator("#post-form button").click()
    page.get_by_text("HTTP 400").wait_for()
    assert "dimension_mismatch" in answer(page)


def test_the_form_of_upsert_is_filled_in_with_rows_that_are_taken(page, node):
    page.goto(f"{node.base_url}/vectors/batch?namespace=formed")
    page.locator("#put-form button").click()
    page.get_by_text("3 vectors upserted").wait_for()
    assert "HTTP 200 OK" in answer(page)
    assert node.call("POST", "/count?namespace=formed", {}) == {"count": 3}


def test_the_namespace_of_the_page_is_chosen_in_its_form(page, filled):
    page.goto(f"{filled.base_url}/search")
    page.locator("#query-namespace").fill("digits")
    page.locator("#query-form button").click()
    page.wait_for_url("**/search?namespace=digits")
    assert len(page.locator("#post-form textarea").input_value().split(",")) > 64


@pytest.mark.parametrize(
    ("path", "operation"),
    [
        pytest.param("/docs", ".opblock", id="swagger"),
        pytest.param("/redoc", "[data-section-id*='operation']", id="redoc"),
    ],
)
def test_the_documentation_renders_its_operations_from_the_node_alone(page, node, troubles, path, operation):
    page.goto(f"{node.base_url}{path}")
    page.locator(operation).first.wait_for(state="attached")
    assert page.locator(operation).count() >= 10
    assert "/search" in page.locator("body").inner_text()
    # ReDoc's menu is complete once it names its makers, whose logo its script would ask for.
    if path == "/redoc":
        page.get_by_text("API docs by Redocly").wait_for(state="attached")
    page.wait_for_load_state("networkidle")
    assert troubles.foreign == []
    assert troubles.blocked == []
