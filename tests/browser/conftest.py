"""A real node, and a headless Chromium that may ask nothing of anybody else.

The browser lives for one module: while playwright's event loop runs, Django refuses database work in this process, so
no test here has any.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.processes.node import NodeProcess, children_of

LAUNCH_ARGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_ON_THE_PATH = ("chromium", "chromium-browser", "google-chrome")


class BrowsedNode(NodeProcess):
    """A node that a person has started."""

    @property
    def password(self) -> str:
        """The password of `admin` that the first start printed."""
        found = re.search(r"user admin, password (\S+)", self.output)
        assert found is not None, self.output
        return found[1]

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Ask the API; return what it answered."""
        answer = self.session.request(method, self.base_url + path, json=body, timeout=30)
        assert answer.status_code < 300, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def node() -> Iterator[BrowsedNode]:
    """A running node, empty at first."""
    node = BrowsedNode()
    try:
        node.start()
        yield node
    finally:
        node.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium: the one on the PATH, else playwright's own."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, _ON_THE_PATH)), None) or playwright.chromium.executable_path
        if not Path(found).exists():
            pytest.skip("there is no chromium, chromium-browser or google-chrome here, nor playwright's own")
        browser = playwright.chromium.launch(executable_path=found, args=list(LAUNCH_ARGS))
        yield browser
        browser.close()


@dataclass
class Troubles:
    """What a page must not do: ask another host, fail in a script, be answered 5xx.

    `blocked` is what the page's own policy kept the browser from asking.
    """

    foreign: list[str] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)


@pytest.fixture
def troubles() -> Troubles:
    """What goes wrong on the page of this test."""
    return Troubles()


@pytest.fixture
def nodes(node) -> list[BrowsedNode]:
    """The nodes whose pages may be opened."""
    return [node]


@pytest.fixture
def page(browser, nodes, troubles) -> Iterator[Any]:
    """A page in a fresh browser profile; afterwards nothing may have gone wrong unseen."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(15_000)

    def guard(route: Any) -> None:
        url = urlsplit(route.request.url)
        if url.scheme in ("data", "blob") or url.netloc in {urlsplit(node.base_url).netloc for node in nodes}:
            route.continue_()
        else:
            troubles.foreign.append(route.request.url)
            route.abort()

    def console(message: Any) -> None:
        if "Content Security Policy" in message.text:
            troubles.blocked.append(message.text)

    def answered(response: Any) -> None:
        if response.status >= 500:
            troubles.failed.append(f"{response.status} {response.url}")

    context.route("**/*", guard)
    page = context.new_page()
    page.on("console", console)
    page.on("pageerror", lambda error: troubles.scripts.append(str(error)))
    page.on("response", answered)
    yield page
    context.close()
    troubles.blocked.clear()  # nothing was asked; the tests of pages with a policy look at it
    assert troubles == Troubles()


@pytest.fixture
def admin(page, node) -> Any:
    """A page of the admin's index, logged in with the password that the node printed."""
    log_in(page, node)
    return page


def log_in(page: Any, node: BrowsedNode) -> None:
    """Log in to a node's admin; its index is open then."""
    page.goto(f"{node.base_url}/admin/")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill(node.password)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("heading", name="This node").wait_for()


@contextlib.contextmanager
def held_back(node: BrowsedNode) -> Iterator[None]:
    """Keep moves from going on within the context: the processes that run them are stopped."""
    worker = node.child("replication")
    pids = [worker, *children_of(worker)]
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.fixture
def reload_until() -> Callable[..., None]:
    """Return a function that loads a page again until `condition` holds."""

    def reload(page: Any, condition: Callable[[], bool], *, timeout_s: float = 20.0, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not show within {timeout_s:g} s"
            page.wait_for_timeout(200)
            page.reload()

    return reload
