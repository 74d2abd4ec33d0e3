"""No page of a node loads anything from another host: everything works with no network but the node's."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import drf_spectacular_sidecar
import pytest

from tests.api.conftest import Api

PAGES = ("/", "/search", "/vectors", "/namespaces", "/replication/info", "/docs", "/redoc", "/admin/login/")


class _Resources(HTMLParser):
    """Collects what a browser loads for a page, links that a person may follow left out."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.inline: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        if tag not in ("a", "form"):
            self.urls += [
                given[name] for name in ("src", "href", "srcset", "data", "action", "poster") if name in given
            ]
        self.inline.append(given.get("style", ""))

    def handle_data(self, data: str) -> None:
        if self.lasttag in ("script", "style"):
            self.inline.append(data)


@pytest.mark.parametrize("path", PAGES)
def test_a_page_names_no_foreign_host_as_a_resource(standing_api: Api, path: str) -> None:
    page = standing_api.page(path)
    assert page["Content-Type"].startswith("text/html")
    resources = _Resources(page.content.decode())

    assert len(resources.urls) > 0
    assert [url for url in resources.urls if re.match(r"([a-z]+:)?//", url)] == []
    assert [code for code in resources.inline if re.search(r"(url\(|import|fetch\()\s*['\"]?(https?:)?//", code)] == []


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_the_documentation_forbids_browsers_to_load_from_elsewhere(standing_api: Api, path: str) -> None:
    policy = standing_api.page(path)["Content-Security-Policy"]

    assert policy.startswith("default-src 'self';")
    assert "http" not in policy
    assert "*" not in policy


def test_redoc_is_kept_from_asking_for_the_logo_that_its_script_names(standing_api: Api) -> None:
    # tests/browser sees that it is not asked for; here, that the page is still about what the script does.
    root = Path(drf_spectacular_sidecar.__file__).parent / "static" / "drf_spectacular_sidecar"
    script = (root / "redoc" / "bundles" / "redoc.standalone.js").read_text()
    assert re.findall(r'src:"(https?://[^"]+)"', script) == ["https://cdn.redoc.ly/redoc/logo-mini.svg"]

    page = standing_api.page("/redoc").content.decode()

    assert page.index("image.setAttribute = ") < page.index("redoc.standalone.js")
