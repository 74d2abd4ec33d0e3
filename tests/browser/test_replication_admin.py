"""A person's day with replicas: the admin of two real nodes, in a real browser. The journeys follow one another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.conftest import BrowsedNode, log_in
from tests.processes.node import wait_for

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
pytestmark = [
    pytest.mark.browser,
    pytest.mark.processes,
    pytest.mark.timeout(240),
]

REPLICAS = "/admin/cluster/replica/"
PLACEMENTS = "/admin/cluster/placement/"
SOON_MS = 45_000


@pytest.fixture(scope="module")
def node() -> Iterator[BrowsedNode]:
    """The primary."""
    node = BrowsedNode(options=("--enable-replication",))
    try:
        node.start()
        yield node
    finally:
        node.close()


@pytest.fixture(scope="module")
def replica(node) -> Iterator[BrowsedNode]:
    """An empty plain node, in no cluster at first."""
    replica = BrowsedNode()
    try:
        replica.start()
        yield replica
    finally:
        replica.close()


@pytest.fixture
def nodes(node, replica) -> list[BrowsedNode]:
    """The pages of both may be opened."""
    return [node, replica]


def cell(page: Any, column: str) -> Any:
    """Return a cell of the only replica's only copy; the page renews it by itself."""
    return page.locator(f"table.copies .field-{column}")


def add(page: Any, node: BrowsedNode, url: str) -> None:
    """Fill in the form and send it."""
    page.goto(f"{node.base_url}{REPLICAS}")
    page.get_by_role("link", name="Add replica").click()
    page.get_by_label("Replica id:").fill("replica_1")
    page.get_by_label("URL:").fill(url)
    page.get_by_role("button", name="Save", exact=True).click()


def act(page: Any, node: BrowsedNode, action: str) -> None:
    """Run an action on the only replica."""
    page.goto(f"{node.base_url}{REPLICAS}")
    page.locator("#action-toggle").check()
    page.get_by_label("Action:").select_option(action)
    page.get_by_role("button", name="Go").click()


def write(node: BrowsedNode, count: int = 1) -> None:
    """Write some rows, one operation each."""
    for number in range(count):
        node.call("POST", "/vectors?namespace=journeys", {"id": number, "values": [number, 1, 2]})


def is_whole_member(page: Any) -> None:
    """Expect the copy to become a member that lacks nothing, while the page is only looked at."""
    expect(cell(page, "membership")).to_have_text("member", timeout=SOON_MS)
    expect(cell(page, "state")).to_contain_text("following", timeout=SOON_MS)
    expect(cell(page, "lag")).to_have_text("0", timeout=SOON_MS)


def test_a_refused_url_shows_the_message_beside_its_field(admin, node):
    add(admin, node, node.base_url)
    expect(admin.locator(".field-url .errorlist")).to_contain_text("is this node itself")
    admin.get_by_label("URL:").fill("somewhere else")
    admin.get_by_role("button", name="Save", exact=True).click()
    expect(admin.locator(".field-url .errorlist")).to_contain_text("must be the URL of a node")


def test_a_replica_added_by_form_becomes_a_member_while_the_page_is_looked_at(admin, node, replica):
    write(node, 3)
    add(admin, node, replica.base_url)
    expect(admin.locator(".messagelist")).to_contain_text("was added successfully")
    is_whole_member(admin)
    expect(admin.locator("#result_list")).to_contain_text("alive for")
    expect(admin.locator(".node-panel")).to_contain_text("2 members, a quorum is 2")
    expect(admin.locator("svg.health-chart path").first).to_be_attached(timeout=SOON_MS)


def test_a_paused_replica_falls_behind_and_catches_up_when_it_is_resumed(admin, node):
    admin.goto(f"{node.base_url}{REPLICAS}")
    admin.get_by_role("link", name="replica_1").click()
    admin.get_by_label("Paused").check()
    admin.get_by_role("button", name="Save", exact=True).click()
    expect(admin.locator("#result_list")).to_contain_text("paused")
    write(node, 5)
    expect(cell(admin, "lag")).to_have_text("5", timeout=SOON_MS)
    expect(cell(admin, "delay")).not_to_have_text("0 s")
    act(admin, node, "sync")
    expect(admin.locator(".messagelist")).to_contain_text("replica replica_1 is paused: resume it first")
    act(admin, node, "resume")
    expect(admin.locator(".messagelist")).to_contain_text("Replica replica_1: resumed.")
    is_whole_member(admin)


def test_it_is_checked_synced_and_verified_from_the_list(admin, node):
    act(admin, node, "check_health")
    expect(admin.locator(".messagelist")).to_contain_text("Replica replica_1 has answered as it should.")
    act(admin, node, "sync")
    expect(admin.locator(".messagelist")).to_contain_text("catch-up started")
    act(admin, node, "verify")
    expect(cell(admin, "digest")).to_contain_text("equal", timeout=SOON_MS)
    admin.get_by_role("link", name="replica_1").click()
    expect(admin.locator(".replica-panel .events")).to_contain_text("user admin")


def test_its_page_works_without_scripts(browser, node):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{node.base_url}/admin/login/?next={REPLICAS}")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill(node.password)
    page.get_by_role("button", name="Log in").click()
    expect(cell(page, "lag")).to_have_text("0")
    page.get_by_role("link", name="replica_1").click()
    page.get_by_role("link", name="Delete").click()
    expect(page.get_by_role("heading", name="What will happen")).to_be_visible()
    page.get_by_role("link", name="Cancel").click()
    expect(page.locator("#result_list")).to_contain_text("replica_1")
    context.close()


def test_it_is_removed_after_asking_and_can_be_added_again(admin, node, replica):
    act(admin, node, "remove")
    expect(admin.locator("tr.before")).to_contain_text("primary, replica_1")
    expect(admin.locator("tr.after .count")).to_have_text("1")
    admin.get_by_role("button", name="Remove replica_1").click()
    expect(admin.locator(".messagelist")).to_contain_text("Replica replica_1 was removed.", timeout=SOON_MS)
    assert node.call("GET", "/replication/info")["total_replicas"] == 0
    admin.goto(f"{node.base_url}/admin/cluster/clusterevent/?q=replica_1")
    expect(admin.locator("#result_list")).to_contain_text("user admin")
    write(node, 2)
    add(admin, node, replica.base_url)
    is_whole_member(admin)


def test_it_is_promoted_after_asking_and_this_node_becomes_its_replica(admin, node, replica):
    # It was added a moment ago: a probe tells that it is alive before the next round does.
    act(admin, node, "check_health")
    expect(admin.locator(".messagelist")).to_contain_text("Replica replica_1 has answered as it should.")
    act(admin, node, "promote")
    expect(admin.locator("tr.after")).to_contain_text("replica_1 (primary), node_")
    expect(admin.locator("tr.subject .holds")).to_have_text("yes")
    expect(admin.locator(".obstacles")).to_have_count(0)
    admin.get_by_role("button", name="Make replica_1 the primary").click()
    expect(admin.locator(".messagelist")).to_contain_text(
        "Replica replica_1 is the primary now, in term 2.", timeout=SOON_MS
    )
    expect(admin.locator("#result_list .field-primary")).to_contain_text(replica.base_url)
    write(replica)
    refused = node.session.post(f"{node.base_url}/vectors?namespace=journeys", json={"id": 1, "values": [1, 1, 1]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "not_primary")

    log_in(admin, replica)
    admin.goto(f"{replica.base_url}{REPLICAS}")
    is_whole_member(admin)


def test_a_replica_is_promoted_on_its_own_page_when_its_primary_is_gone(admin, node, replica):
    replica.stop()
    admin.goto(f"{node.base_url}{REPLICAS}")
    expect(admin.locator(".node-panel")).to_contain_text("This node is a replica itself")
    admin.get_by_role("link", name="Placements").last.click()
    admin.get_by_role("link", name="Promote this node").click()
    expect(admin.locator(".holders")).to_contain_text("does not answer")
    admin.get_by_role("button", name="Make this node the primary").click()
    expect(admin.locator(".messagelist")).to_contain_text("This node is the primary now", timeout=SOON_MS)
    write(node)
    replica.start()
    wait_for(
        lambda: replica.call("GET", "/replication/info").get("role") == "replica",
        timeout_s=45,
        what="the old primary as a replica",
    )
    is_whole_member(admin)
