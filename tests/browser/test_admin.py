"""A person's day in the admin of a real node, in a real browser."""

from __future__ import annotations

import pytest

from tests.browser import digits

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
pytestmark = [pytest.mark.browser, pytest.mark.processes]

NAMESPACES = "/admin/vectors/namespace/"


@pytest.fixture(scope="module")
def filled(node):
    """The node with the first 200 digits."""
    digits.load(node, rows=200)
    return node


def cell(page, row, column):
    """Return the text of a change list's cell."""
    return page.locator("#result_list tr", has_text=row).locator(f".field-{column}").inner_text()


def test_makes_a_namespace_that_rest_can_fill_and_drops_it(admin, node):
    admin.goto(f"{node.base_url}{NAMESPACES}")
    admin.get_by_role("link", name="Add namespace").click()
    admin.get_by_label("Name:").fill("journeys")
    admin.get_by_label("Dimension:").fill("3")
    admin.get_by_label("Metric:").select_option("l2")
    admin.get_by_role("button", name="Save", exact=True).click()
    expect(admin.locator(".messagelist")).to_contain_text("was added successfully")
    node.call("POST", "/vectors?namespace=journeys", {"id": 1, "values": [1, 2, 3]})
    admin.reload()
    assert (cell(admin, "journeys", "dimension"), cell(admin, "journeys", "rows")) == ("3", "1")

    admin.get_by_role("link", name="journeys").click()
    admin.get_by_role("link", name="Delete").click()
    expect(admin.locator("#content")).to_contain_text("Namespace journeys with 1 row")
    admin.get_by_role("button", name="Drop journeys").click()
    expect(admin.locator(".messagelist")).to_contain_text("1 row went with namespace journeys.")
    assert "journeys" not in node.call("GET", "/namespaces")["namespaces"]
    admin.goto(f"{node.base_url}/admin/")
    expect(admin.locator("#recent-actions-module")).to_contain_text("journeys")


def test_shows_a_refusal_beside_its_field(admin, node):
    admin.goto(f"{node.base_url}{NAMESPACES}add/")
    admin.get_by_label("Name:").fill("wide")
    admin.get_by_label("Dimension:").fill("5000")
    admin.get_by_role("button", name="Save", exact=True).click()
    expect(admin.locator(".field-dimension .errorlist")).to_contain_text("dimension is 1 to 4096")


def test_browses_rows_as_pictures_and_searches_more_like_one(admin, filled):
    admin.goto(f"{filled.base_url}{NAMESPACES}")
    admin.locator("#result_list tr", has_text="digits").get_by_role("link", name="browse").click()
    pictures = admin.locator("#result_list img.picture")
    expect(pictures).to_have_count(25)
    assert pictures.evaluate_all("images => images.every(image => image.naturalWidth === 8)")
    admin.get_by_role("link", name="next page").click()
    expect(admin.locator("#result_list .id").first).to_have_text('"digit-0026"')

    admin.locator("#browse_filter").fill('{"digit": 3}')
    admin.get_by_role("button", name="Browse").click()
    expect(admin.locator("#result_list .metadata").first).to_contain_text('"digit": 3')
    row = admin.locator("#result_list tbody tr").first
    name = row.locator(".id").inner_text()
    row.get_by_role("link", name="more like this").click()
    expect(admin.locator(".target")).to_contain_text(name)
    assert name not in admin.locator("#result_list .id").all_inner_texts()
    found = admin.locator("#result_list .metadata").all_inner_texts()
    assert len(found) == 10
    assert sum('"digit": 3' in metadata for metadata in found) >= 8
    scores = [float(score) for score in admin.locator("#result_list .score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    assert admin.locator("img.picture").evaluate_all("images => images.every(image => image.naturalWidth > 0)")


def test_searches_by_a_pasted_vector(admin, filled):
    values = filled.call("GET", "/vectors/digit-0007?namespace=digits")["values"]
    admin.goto(f"{filled.base_url}{NAMESPACES}")
    admin.locator("#result_list tr", has_text="digits").get_by_role("link", name="browse").click()
    admin.get_by_label("Or vector").fill(str(values))
    admin.locator("#search-form").get_by_role("button", name="Search").click()
    expect(admin.locator(".target")).to_contain_text("Most similar to the vector")
    assert admin.locator("#result_list .id").first.inner_text() == '"digit-0007"'


def test_works_without_scripts(browser, filled):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{filled.base_url}/admin/login/?next={NAMESPACES}")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill(filled.password)
    page.get_by_role("button", name="Log in").click()
    page.locator("#result_list tr", has_text="digits").get_by_role("link", name="browse").click()
    page.get_by_label("Like id").fill("digit-0001")
    page.locator("#search-form").get_by_role("button", name="Search").click()
    expect(page.locator("#result_list img.picture")).to_have_count(10)
    context.close()


def test_checkpoint_now_turns_the_tail_into_a_segment(admin, filled, reload_until):
    admin.goto(f"{filled.base_url}{NAMESPACES}")
    assert cell(admin, "digits", "segments") == "0"
    admin.locator("#result_list tr", has_text="digits").get_by_role("checkbox").check()
    admin.get_by_label("Action:").select_option("checkpoint")
    admin.get_by_role("button", name="Go").click()
    expect(admin.locator(".messagelist")).to_contain_text("The broker took the request")
    reload_until(admin, lambda: cell(admin, "digits", "segments") == "1", what="the segment")
    reload_until(admin, lambda: cell(admin, "digits", "tail_rows") == "0", what="the empty tail")


def test_an_interval_changed_in_the_admin_is_kept_over_a_restart(admin, node):
    admin.goto(f"{node.base_url}/admin/django_celery_beat/intervalschedule/add/")
    admin.get_by_label("Number of Periods:").fill("47")
    admin.get_by_label("Interval Period:").select_option("seconds")
    admin.get_by_role("button", name="Save", exact=True).click()
    admin.goto(f"{node.base_url}/admin/django_celery_beat/periodictask/")
    admin.locator("#result_list").get_by_role("link", name="heartbeat").click()
    admin.get_by_label("Interval Schedule:").select_option(label="every 47 seconds")
    admin.get_by_role("button", name="Save", exact=True).click()
    assert cell(admin, "heartbeat", "interval") == "every 47 seconds"
    node.restart()
    admin.reload()
    assert cell(admin, "heartbeat", "interval") == "every 47 seconds"
