"""Takes the pictures of the documentation, of a real node with the data set that ships with the project:

    script/test tests/browser/screenshots.py

Not part of a plain run, which changes no file of the checkout.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings

from tests.browser import digits
from tests.browser.conftest import BrowsedNode, held_back, log_in
from tests.processes.node import NodeProcess, wait_for

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

IMAGES = settings.BASE_DIR / "docs" / "images"
LARGEST_BYTES = 200_000
COLORS = {"tomato": (255, 99, 71), "gold": (255, 215, 0), "teal": (0, 128, 128), "navy": (0, 0, 128)}

pytestmark = [pytest.mark.browser, pytest.mark.processes]


@pytest.fixture(scope="module")
def node() -> Iterator[BrowsedNode]:
    """A node that may have replicas."""
    node = BrowsedNode(options=("--enable-replication",))
    try:
        node.start()
        yield node
    finally:
        node.close()


@pytest.fixture(scope="module")
def filled(node):
    """The node with all digits, and a small namespace beside them."""
    digits.load(node)
    node.call("PUT", "/namespaces/colors", {"dimension": 3, "metric": "l2"})
    rows = [{"id": name, "values": values, "metadata": {"name": name}} for name, values in COLORS.items()]
    node.call("PUT", "/vectors/batch?namespace=colors", {"vectors": rows})
    return node


def take(page: Any, name: str, *, height: int) -> None:
    """Take a picture of the upper part of the page."""
    path = IMAGES / name
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path, clip={"x": 0, "y": 0, "width": 1280, "height": height})
    assert path.stat().st_size < LARGEST_BYTES


@pytest.fixture(scope="module")
def divided() -> Iterator[BrowsedNode]:
    """A coordinator with two shards of its own and one on another node, all digits, and a replica of its own."""
    node = BrowsedNode(options=("--enable-sharding", "--shards", "2", "--enable-replication"))
    others = [NodeProcess(), NodeProcess()]
    try:
        node.start()
        digits.load(node)
        for other in others:
            other.start()
        node.call("POST", f"/sharding/shards?shard_id=shard_2&shard_url={others[0].base_url}")
        node.call("POST", f"/replication/replicas?replica_id=replica_1&replica_url={others[1].base_url}")

        def is_settled() -> bool:
            shards = node.call("GET", "/sharding/info")["shards"].values()
            members = node.call("GET", "/replication/info")["replicas"].values()
            return all(shard["slots"] and shard["is_healthy"] for shard in shards) and all(
                known["member"] for known in members
            )

        wait_for(is_settled, timeout_s=90, what="three shards and a member")
        yield node
    finally:
        for started in (node, *others):
            started.close()


def quiet(admin: Any, reload_until: Any) -> None:
    """Wait until nothing is amiss with the node: the background processes of a new one take a moment."""
    reload_until(admin, lambda: not admin.locator(".node-warning").count(), what="a page without a warning")


def test_admin_namespaces(admin, filled, reload_until):
    admin.goto(f"{filled.base_url}/admin/vectors/namespace/")
    admin.locator("#action-toggle").check()
    admin.get_by_label("Action:").select_option("checkpoint")
    admin.get_by_role("button", name="Go").click()
    segments = admin.locator("#result_list .field-segments")
    reload_until(admin, lambda: segments.all_inner_texts() == ["1", "1"], what="the segments")
    admin.goto(f"{filled.base_url}/admin/vectors/namespace/")
    quiet(admin, reload_until)
    take(admin, "admin-namespaces.png", height=560)


def test_admin_search(admin, filled, reload_until):
    admin.goto(f"{filled.base_url}/admin/vectors/namespace/?q=digits")
    quiet(admin, reload_until)
    admin.get_by_role("link", name="browse").click()
    admin.locator("#search_id").fill("digit-0004")
    admin.locator("#search-form").get_by_role("button", name="Search").click()
    expect(admin.locator("#result_list img.picture")).to_have_count(10)
    take(admin, "admin-search.png", height=900)


def test_browsable_search(page, filled):
    page.set_viewport_size({"width": 1280, "height": 1100})
    page.goto(f"{filled.base_url}/search?namespace=digits")
    body = page.locator("#post-form textarea")
    body.fill('{"id": "digit-0004", "top_k": 3, "filter": {"parity": "odd"}, "with_values": false}')
    page.locator("#post-form button").click()
    page.get_by_text('"score"').first.wait_for()
    take(page, "browsable-search.png", height=900)


@pytest.fixture(scope="module")
def replicated(filled) -> Iterator[BrowsedNode]:
    """The node with two replicas: both members, one of them paused and behind."""
    replicas = [NodeProcess(), NodeProcess()]
    try:
        for number, replica in enumerate(replicas, 1):
            replica.start()
            query = f"replica_id=replica_{number}&replica_url={replica.base_url}"
            filled.call("POST", f"/replication/replicas?{query}")

        def are_members() -> bool:
            return all(known["member"] for known in filled.call("GET", "/replication/info")["replicas"].values())

        wait_for(are_members, timeout_s=60, what="two members")
        yield filled
    finally:
        for replica in replicas:
            replica.close()


def test_admin_replicas(admin, replicated, reload_until):
    url = f"{replicated.base_url}/admin/cluster/replica/"
    admin.goto(url)
    for replica, action, done in (("replica_1", "verify", "being compared"), ("replica_2", "pause", "paused")):
        admin.locator("#result_list tr", has_text=replica).get_by_role("checkbox").check()
        admin.get_by_label("Action:").select_option(action)
        admin.get_by_role("button", name="Go").click()
        expect(admin.locator(".messagelist")).to_contain_text(done)
    for number in range(7):
        replicated.call("POST", "/vectors?namespace=colors", {"id": f"grey-{number}", "values": [number] * 3})
    expect(admin.locator(".field-digest").first).to_contain_text("equal", timeout=45_000)
    admin.wait_for_timeout(30_000)  # probes for the chart
    admin.goto(url)
    quiet(admin, reload_until)
    expect(admin.locator(".live-note")).to_contain_text("As of", timeout=15_000)
    take(admin, "admin-replicas.png", height=640)


def test_admin_remove_replica(admin, replicated, reload_until):
    admin.goto(f"{replicated.base_url}/admin/cluster/replica/")
    quiet(admin, reload_until)
    admin.get_by_role("link", name="replica_1").click()
    admin.get_by_role("link", name="Delete").click()
    take(admin, "admin-remove-replica.png", height=880)


def open_admin(page: Any, node: BrowsedNode, path: str, reload_until: Any) -> None:
    """Log in to a node, and open a page of its admin when nothing is amiss."""
    log_in(page, node)
    page.goto(f"{node.base_url}/admin/cluster/{path}")
    quiet(page, reload_until)


@pytest.fixture
def nodes(node, request) -> list[BrowsedNode]:
    """The pages of the coordinator may be opened too, in the tests that have one."""
    return [node, *([request.getfixturevalue("divided")] if "divided" in request.fixturenames else [])]


def test_admin_shards(page, divided, reload_until):
    open_admin(page, divided, "shard/", reload_until)
    page.wait_for_timeout(20_000)  # probes for the chart
    expect(page.locator(".live-note")).to_contain_text("As of", timeout=15_000)
    take(page, "admin-shards.png", height=640)


def test_admin_redistribute(page, divided, reload_until):
    open_admin(page, divided, "shard/", reload_until)
    page.get_by_role("link", name="shard_1").click()
    page.get_by_role("link", name="Redistribute").click()
    page.get_by_label("To shard").select_option("shard_2")
    page.get_by_role("button", name="Show the plan").click()
    expect(page.locator(".plan .sentence")).to_contain_text("slots move with")
    take(page, "admin-redistribute.png", height=560)


def test_admin_cluster(page, divided, reload_until):
    open_admin(page, divided, "topology/", reload_until)
    move = divided.call("POST", "/sharding/shards/shard_1/redistribute/shard_2")["move"]
    wait_for(lambda: divided.call("GET", f"/cluster/moves/{move}")["rows_done"], timeout_s=20, what="copied rows")
    with held_back(divided):
        expect(page.locator("svg.cluster .arrow")).to_have_count(1, timeout=15_000)
        take(page, "admin-cluster.png", height=760)
