"""A person's day with shards: the admin of a real coordinator and a node that becomes its shard, in a real browser.

The journeys follow one another. What a page shows of a move is waited for on the page itself, which renews it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.conftest import BrowsedNode, held_back, log_in

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
pytestmark = [
    pytest.mark.browser,
    pytest.mark.processes,
    pytest.mark.timeout(240),
]

SHARDS = "/admin/cluster/shard/"
MOVES = "/admin/cluster/move/"
PICTURE = "/admin/cluster/topology/"
SOON_MS = 60_000
ROWS = 600


@pytest.fixture(scope="module")
def node() -> Iterator[BrowsedNode]:
    """The coordinator, with one shard of its own."""
    node = BrowsedNode(options=("--enable-sharding", "--shards", "1"))
    try:
        node.start()
        rows = [{"id": number, "values": [number, 1, 2]} for number in range(ROWS)]
        node.call("PUT", "/vectors/batch?namespace=journeys", {"vectors": rows})
        yield node
    finally:
        node.close()


@pytest.fixture(scope="module")
def away(node) -> Iterator[BrowsedNode]:
    """An empty plain node, nobody's shard at first."""
    away = BrowsedNode()
    try:
        away.start()
        yield away
    finally:
        away.close()


@pytest.fixture
def nodes(node, away) -> list[BrowsedNode]:
    """The pages of both may be opened."""
    return [node, away]


def row(page: Any, label: str) -> Any:
    """Return a shard's row in the list."""
    return page.locator("#result_list tr", has=page.get_by_role("link", name=label, exact=True))


def add(page: Any, node: BrowsedNode, label: str, url: str = "") -> None:
    """Fill in the form and send it."""
    page.goto(f"{node.base_url}{SHARDS}")
    page.get_by_role("link", name="Add shard").click()
    page.get_by_label("Shard id:").fill(label)
    page.get_by_label("URL:").fill(url)
    page.get_by_role("button", name="Save", exact=True).click()


def act(page: Any, node: BrowsedNode, label: str, action: str) -> None:
    """Run an action on one shard."""
    page.goto(f"{node.base_url}{SHARDS}")
    row(page, label).get_by_role("checkbox").check()
    page.get_by_label("Action:").select_option(action)
    page.get_by_role("button", name="Go").click()


def redistribute(page: Any, node: BrowsedNode, source: str, target: str) -> None:
    """Have all slots of a shard moved to another; the page of the move is open then."""
    act(page, node, source, "redistribute")
    page.get_by_label("To shard").select_option(target)
    page.get_by_role("button", name="Show the plan").click()
    page.get_by_role("button", name=f"Move all slots of {source} to {target}").click()
    expect(page.get_by_role("heading", name="Progress")).to_be_visible()


def follow_move(page: Any) -> None:
    """Expect the bar of the open move's page to reach its end, while the page is only looked at."""
    expect(page.locator(".replica-panel .badge").first).to_have_text("done", timeout=SOON_MS)
    expect(page.locator(".replica-panel .progress progress").first).to_have_attribute("value", "100")
    for step in page.locator("table.steps .field-phase").all():
        expect(step).to_have_text("done")


def slots(node: BrowsedNode) -> dict[str, int]:
    """Return how many slots each shard owns, as the API says."""
    return {label: shard["slots"] for label, shard in node.call("GET", "/sharding/info")["shards"].items()}


def count(node: BrowsedNode) -> int:
    """Return the number of rows, as the API says."""
    return int(node.call("POST", "/count?namespace=journeys", {})["count"])


def test_a_refused_shard_shows_the_message_beside_its_field(admin, node):
    add(admin, node, "shard_1", node.base_url)
    expect(admin.locator(".field-url .errorlist")).to_contain_text("is this node itself")
    add(admin, node, "no spaces")
    expect(admin.locator(".field-label .errorlist")).to_contain_text("letters, digits")
    assert slots(node) == {"shard_0": 16_384}


def test_a_local_shard_is_filled_and_the_bar_of_its_move_reaches_the_end(admin, node):
    add(admin, node, "shard_1")
    expect(admin.locator(".messagelist")).to_contain_text("was added successfully")
    admin.locator(".messagelist").get_by_role("link", name=re.compile("^Rebalancing")).click()
    follow_move(admin)
    expect(admin.locator("#content")).to_contain_text("user admin")
    admin.goto(f"{node.base_url}{SHARDS}")
    for label in ("shard_0", "shard_1"):
        expect(row(admin, label).locator(".field-slots")).to_have_text("8,192")
    assert count(node) == ROWS


def test_an_empty_node_becomes_a_shard_by_its_url(admin, node, away):
    add(admin, node, "shard_2", away.base_url)
    expect(admin.locator(".messagelist")).to_contain_text("was added successfully")
    expect(row(admin, "shard_2").locator(".field-part_of_slots")).to_have_text("33.3 %", timeout=SOON_MS)
    expect(row(admin, "shard_2")).to_contain_text("alive for", timeout=SOON_MS)
    act(admin, node, "shard_2", "check_health")
    expect(admin.locator(".messagelist")).to_contain_text("Shard shard_2 has answered as it should.")
    assert count(node) == ROWS


def test_the_shard_says_on_its_own_page_whose_it_is(page, node, away):
    log_in(page, away)
    page.goto(f"{away.base_url}{SHARDS}")
    expect(page.locator(".node-panel")).to_contain_text(f"This node is a shard itself: shard_2 of {node.base_url}")
    page.goto(f"{away.base_url}{PICTURE}")
    expect(page.locator("svg.cluster")).to_contain_text("Coordinator")
    expect(page.locator("svg.cluster")).to_contain_text("shard_2")


def test_the_picture_shows_every_shard_and_renews_itself(admin, node):
    admin.get_by_role("link", name="Cluster", exact=True).first.click()
    picture = admin.locator("svg.cluster")
    for label in ("shard_0", "shard_1", "shard_2"):
        expect(picture.get_by_role("link", name=re.compile(f"^{label}: active"))).to_be_visible()
    expect(admin.locator(".live-note")).to_contain_text("As of", timeout=SOON_MS)
    node.call("POST", "/sharding/shards?shard_id=shard_3&rebalance=false")
    added = picture.get_by_role("link", name=re.compile("^shard_3: active, on this node, 0 slots"))
    expect(added).to_be_visible(timeout=SOON_MS)
    expect(admin.locator(".cluster-table")).to_contain_text("shard_3")


def test_the_picture_is_gone_through_by_keyboard_and_keeps_its_place_when_it_is_renewed(admin, node):
    admin.goto(f"{node.base_url}{PICTURE}")
    chosen = admin.locator("svg.cluster").get_by_role("link", name=re.compile("^shard_1: "))
    chosen.focus()
    node.call("POST", "/sharding/shards?shard_id=shard_4&rebalance=false")
    expect(admin.locator(".cluster-table")).to_contain_text("shard_4", timeout=SOON_MS)
    expect(chosen).to_be_focused()
    admin.keyboard.press("Tab")
    expect(admin.locator("svg.cluster").get_by_role("link", name=re.compile("^shard_2: "))).to_be_focused()
    admin.keyboard.press("Enter")
    expect(admin.get_by_role("heading", name="shard_2")).to_be_visible()
    for label in ("shard_3", "shard_4"):
        node.call("DELETE", f"/sharding/shards/{label}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_picture_is_readable_in_light_and_in_dark(admin, node, scheme):
    admin.emulate_media(color_scheme=scheme)
    admin.goto(f"{node.base_url}{PICTURE}")
    contrast = admin.evaluate(CONTRAST)
    assert contrast, "nothing was measured"
    assert min(contrast.values()) >= 4.5, contrast


def test_a_redistribution_shows_its_plan_and_does_it_after_asking(admin, node):
    act(admin, node, "shard_1", "redistribute")
    admin.get_by_label("To shard").select_option("shard_0")
    admin.get_by_role("button", name="Show the plan").click()
    expect(admin.locator(".plan .sentence")).to_contain_text("slots move with")
    expect(admin.locator("table.plan tbody tr")).to_have_count(1)
    before = slots(node)
    admin.get_by_role("button", name="Move all slots of shard_1 to shard_0").click()
    follow_move(admin)
    after = slots(node)
    assert (after["shard_0"], after["shard_1"]) == (before["shard_0"] + before["shard_1"], 0)
    assert count(node) == ROWS


def test_a_weight_is_changed_and_a_rebalance_moves_what_it_asks_for(admin, node):
    admin.goto(f"{node.base_url}{SHARDS}")
    row(admin, "shard_0").get_by_role("link", name="shard_0").click()
    admin.get_by_label("Weight:").fill("2")
    admin.get_by_role("button", name="Save", exact=True).click()
    expect(row(admin, "shard_0")).to_contain_text("weight 2 stands for 50.0 %")
    admin.get_by_role("link", name="Rebalance").click()
    expect(admin.locator(".plan .sentence")).to_contain_text("slots move with")
    admin.get_by_role("button", name="Rebalance").click()
    follow_move(admin)
    assert slots(node) == {"shard_0": 8192, "shard_1": 4096, "shard_2": 4096}


def test_a_move_is_paused_resumed_and_another_one_cancelled(admin, node):
    with held_back(node):
        redistribute(admin, node, "shard_2", "shard_1")
        admin.get_by_role("button", name="Pause").click()
        expect(admin.locator(".messagelist")).to_contain_text("paused.")
        expect(admin.locator(".replica-panel")).to_contain_text("paused")
    expect(admin.get_by_role("button", name="Pause")).to_be_disabled()
    admin.get_by_role("button", name="Resume").click()
    follow_move(admin)
    assert slots(node)["shard_2"] == 0
    with held_back(node):
        redistribute(admin, node, "shard_1", "shard_2")
        admin.get_by_role("link", name="Cancel").click()
        expect(admin.get_by_role("heading", name="What will happen")).to_be_visible()
        admin.get_by_role("button", name=re.compile("^Cancel redistribution")).click()
        expect(admin.locator(".messagelist")).to_contain_text("cancelled.")
    expect(admin.locator(".replica-panel .badge").first).to_have_text("cancelled", timeout=SOON_MS)
    expect(admin.locator(".replica-panel .events")).to_contain_text("user admin")
    assert slots(node)["shard_2"] == 0


def test_a_shard_is_drained_and_removed_after_asking(admin, node, away):
    admin.goto(f"{node.base_url}{SHARDS}rebalance/")
    admin.get_by_role("button", name="Rebalance").click()
    follow_move(admin)
    act(admin, node, "shard_2", "drain")
    expect(admin.get_by_role("heading", name="What will happen")).to_be_visible()
    expect(admin.locator("table.plan tbody tr")).to_have_count(2)
    admin.get_by_role("button", name="Remove shard_2").click()
    expect(admin.locator(".messagelist")).to_contain_text("is being drained", timeout=SOON_MS)
    follow_move(admin)
    admin.goto(f"{node.base_url}{SHARDS}")
    expect(admin.locator("#result_list")).not_to_contain_text("shard_2")
    assert set(slots(node)) == {"shard_0", "shard_1"}
    assert count(node) == ROWS


def test_a_dead_shard_is_named_in_the_banner_and_drawn_as_such(admin, node, away):
    add(admin, node, "shard_2", away.base_url)
    expect(row(admin, "shard_2").locator(".field-part_of_slots")).to_have_text("25.0 %", timeout=SOON_MS)
    away.stop()
    admin.goto(f"{node.base_url}{PICTURE}")
    dead = admin.locator("svg.cluster").get_by_role("link", name=re.compile("^shard_2: active, dead"))
    expect(dead).to_be_visible(timeout=SOON_MS)
    admin.goto(f"{node.base_url}/admin/")
    expect(admin.locator(".node-warning", has_text="has been dead for")).to_contain_text("shard_2")
    act(admin, node, "shard_2", "drain")
    admin.get_by_role("button", name="Remove shard_2").click()
    expect(admin.locator(".errornote")).to_contain_text("its node does not answer", timeout=SOON_MS)
    away.start()


#: WCAG 2 contrast of every text in the picture with what is behind it: {text: ratio}.
CONTRAST = """() => {
    const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
    const light = (color) => {
        const [red, green, blue] = numbers(color).map((part) => {
            const share = part / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const found = {};
    for (const text of document.querySelectorAll("svg.cluster .box text")) {
        const behind = text.closest(".box").querySelector("rect");
        const pair = [getComputedStyle(text).fill, getComputedStyle(behind).fill].map(light).sort((a, b) => b - a);
        found[text.textContent] = (pair[0] + 0.05) / (pair[1] + 0.05);
    }
    return found;
}"""
