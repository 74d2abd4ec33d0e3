"""Who is let in while there are no keys: programs and pages of this machine, and what a trusted proxy lets through."""

from __future__ import annotations

import pytest
from django.test import Client

from mlvdb_site.http.local import TrustedProxies, host_name, is_loopback, refusal

pytestmark = pytest.mark.django_db

LOCAL = {"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "localhost:8000", "wsgi.url_scheme": "http"}
NO_PROXIES = TrustedProxies(())


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:9", "[::1]", "[::1]:8000"])
def test_protected_mode_answers_every_loopback_name(host: str) -> None:
    assert refusal({**LOCAL, "HTTP_HOST": host}, proxies=NO_PROXIES) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "localhost.",
        "localhost:",
        "localhost:80@evil.example",
        "127.0.0.1:8000:8000",
        "[::1",
        "[::1]evil",
        "0.0.0.0:8000",
        "127.0.0.2",
        "",
    ],
)
def test_protected_mode_refuses_a_forged_host(host: str) -> None:
    assert "Host" in str(refusal({**LOCAL, "HTTP_HOST": host}, proxies=NO_PROXIES))


def test_protected_mode_refuses_a_request_without_a_host() -> None:
    assert refusal({"REMOTE_ADDR": "127.0.0.1"}, proxies=NO_PROXIES) is not None


@pytest.mark.parametrize("address", ["10.0.0.7", "192.168.1.4", "::2", "fe80::1", "", "unix:", "8.8.8.8"])
def test_protected_mode_refuses_connections_from_elsewhere(address: str) -> None:
    assert "not from this machine" in str(refusal({**LOCAL, "REMOTE_ADDR": address}, proxies=NO_PROXIES))


@pytest.mark.parametrize("address", ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"])
def test_every_form_of_the_loopback_address_is_local(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize(
    "header",
    [
        "HTTP_X_FORWARDED_FOR",
        "HTTP_X_FORWARDED_HOST",
        "HTTP_X_FORWARDED_PROTO",
        "HTTP_X_FORWARDED_ANYTHING",
        "HTTP_FORWARDED",
        "HTTP_X_REAL_IP",
        "HTTP_VIA",
    ],
)
def test_protected_mode_refuses_what_a_proxy_forwarded(header: str) -> None:
    forwarded = {**LOCAL, header: "127.0.0.1"}

    assert "proxy" in str(refusal(forwarded, proxies=NO_PROXIES))
    assert refusal(forwarded, proxies=TrustedProxies(("127.0.0.1",))) is None
    assert refusal(forwarded, proxies=TrustedProxies(("10.0.0.0/8",))) is not None


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "http://localhost:9000", "http://127.0.0.1:8000", "https://localhost:8000", "null", ""],
)
def test_protected_mode_refuses_a_foreign_origin(origin: str) -> None:
    assert "Origin" in str(refusal({**LOCAL, "HTTP_ORIGIN": origin}, proxies=NO_PROXIES))


def test_protected_mode_answers_its_own_pages() -> None:
    own = {**LOCAL, "HTTP_ORIGIN": "http://localhost:8000", "HTTP_SEC_FETCH_SITE": "same-origin"}

    assert refusal(own, proxies=NO_PROXIES) is None
    assert refusal({**LOCAL, "HTTP_SEC_FETCH_SITE": "none"}, proxies=NO_PROXIES) is None


@pytest.mark.parametrize("site", ["cross-site", "same-site", ""])
def test_protected_mode_refuses_what_another_site_made(site: str) -> None:
    assert "Sec-Fetch-Site" in str(refusal({**LOCAL, "HTTP_SEC_FETCH_SITE": site}, proxies=NO_PROXIES))


def test_a_trusted_proxy_may_pass_on_a_listed_host() -> None:
    proxies = TrustedProxies(("10.0.0.7",))
    forwarded = {"REMOTE_ADDR": "10.0.0.7", "HTTP_HOST": "db.example", "HTTP_ORIGIN": "https://db.example"}

    assert refusal(forwarded, proxies=proxies, hosts=frozenset({"db.example"})) is None
    assert refusal(forwarded, proxies=proxies) is not None


def test_a_host_name_is_read_strictly() -> None:
    assert host_name("Example.COM:80") == "example.com"
    assert host_name("example.com:port") == ""


@pytest.mark.parametrize(
    "path", ["/", "/healthz", "/health", "/search", "/admin/login/", "/static/x.css", "/metrics", "/nothing"]
)
def test_a_refusal_in_protected_mode_has_the_one_shape_on_every_path(node_client: Client, path: str) -> None:
    answer = node_client.get(path, headers={"Host": "evil.example"})

    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "protected_mode"
    assert "create_api_key" in answer.json()["error"]["message"]
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]
