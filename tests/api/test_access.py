"""Who is let in once there are keys: their holders, and sessions of staff."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory, override_settings
from django.utils import timezone

from mlvdb_site import keys
from mlvdb_site.http import access
from mlvdb_site.http.scopes import scopes_sufficient
from mlvdb_site.models import ApiKey

JSON = "application/json"
pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _no_background_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "last_used", keys.LastUsed())
    monkeypatch.setattr(keys, "_last_used_write", lambda key_id: None)


def key(*scopes: str, name: str = "test") -> str:
    return keys.key_create(name=name, scopes=scopes)[1]


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


@pytest.mark.parametrize(("address", "secure"), [("10.0.0.7", True), ("10.0.0.8", False)])
def test_only_a_trusted_proxy_may_say_that_the_client_came_over_tls(address: str, secure: bool) -> None:
    key("read")
    seen: list[bool] = []

    def view(request: HttpRequest) -> HttpResponse:
        seen.append(request.is_secure())
        return HttpResponse()

    request = RequestFactory().get("/healthz", REMOTE_ADDR=address, headers={"X-Forwarded-Proto": "https"})
    with override_settings(MLVDB_TRUSTED_PROXIES=("10.0.0.7",)):
        access.AccessMiddleware(view)(request)

    assert seen == [secure]


# Keys


def test_a_key_ends_protected_mode_and_its_revocation_restores_it(node_client: Client) -> None:
    assert node_client.get("/health").status_code == 200
    text = key("read")
    assert node_client.get("/health").status_code == 401
    assert node_client.get("/health", headers=bearer(text)).status_code == 200
    assert (
        node_client.get("/health", headers={**bearer(text), "Host": "db.example"}, REMOTE_ADDR="10.0.0.7").status_code
        == 200
    )

    keys.key_revoke(ApiKey.objects.get())

    assert node_client.get("/health").status_code == 200
    assert node_client.get("/health", REMOTE_ADDR="10.0.0.7").status_code == 403


def test_a_refused_key_gets_401_and_is_told_what_to_send(node_client: Client) -> None:
    key("read")

    answer = node_client.get("/namespaces")

    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert answer.json()["error"]["code"] == "not_authenticated"


@pytest.mark.parametrize(
    "sent",
    [
        "Bearer",
        "Bearer ",
        "Bearer nonsense",
        "Bearer mlvdb_",
        "Bearer mlvdb_0123456789ab_" + "x" * 43,
        "Bearer ключ",
        "Basic YWRtaW46YWRtaW4=",
        "Token abc",
    ],
)
def test_a_wrong_authorization_is_401_and_never_500(node_client: Client, sent: str) -> None:
    key("read")

    answer = node_client.get("/namespaces", HTTP_AUTHORIZATION=sent)

    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_key"
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]


def test_a_key_with_one_letter_changed_opens_nothing(node_client: Client) -> None:
    text = key("read")
    changed = text[:-1] + ("a" if text[-1] != "a" else "b")

    assert node_client.get("/namespaces", headers=bearer(changed)).status_code == 401


def test_a_revoked_key_opens_nothing_while_another_lives(node_client: Client) -> None:
    text = key("read", name="old")
    key("read", name="new")
    keys.key_revoke(ApiKey.objects.get(name="old"))

    assert node_client.get("/namespaces", headers=bearer(text)).status_code == 401


def test_a_change_of_scopes_holds_from_the_next_request(node_client: Client) -> None:
    text = key("read")
    assert node_client.post("/log/level?level=info", content_type=JSON, headers=bearer(text)).status_code == 403

    keys.key_change(ApiKey.objects.get(), name="test", scopes=["operate"])

    assert node_client.post("/log/level?level=info", content_type=JSON, headers=bearer(text)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "scopes"),
    [
        ("GET", "/vectors/7", {"read"}),
        ("GET", "/namespaces", {"read"}),
        ("GET", "/namespaces/vectors", {"read"}),
        ("GET", "/storage/info", {"read"}),
        ("POST", "/search", {"read"}),
        ("POST", "/search/batch", {"read"}),
        ("POST", "/count", {"read"}),
        ("POST", "/vectors/fetch", {"read"}),
        ("POST", "/vectors", {"write"}),
        ("PUT", "/vectors/batch", {"write"}),
        ("PATCH", "/vectors/fetch", {"write"}),
        ("DELETE", "/vectors", {"write"}),
        ("POST", "/vectors/delete", {"write"}),
        ("PUT", "/namespaces/a", {"write"}),
        ("DELETE", "/namespaces/a", {"write"}),
        ("POST", "/log/level", {"operate"}),
        ("POST", "/sharding/shards", {"operate"}),
        ("DELETE", "/replication/replicas/a", {"operate"}),
        ("POST", "/something/new", {"operate"}),
        ("GET", "/metrics", {"read", "operate"}),
        ("GET", "/cluster/topology", {"read", "operate"}),
        ("GET", "/health", set()),
        ("GET", "/docs", set()),
    ],
)
def test_each_route_needs_its_scope(method: str, path: str, scopes: set[str]) -> None:
    assert set(scopes_sufficient(method, path)) == scopes


def test_a_missing_scope_is_403_and_named(node_client: Client) -> None:
    answer = node_client.post("/vectors", {"values": [1.0]}, "application/json", headers=bearer(key("read")))

    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "missing_scope"
    assert answer.json()["error"]["detail"] == {"scope": ["write"]}
    assert 'scope="write"' in answer.headers["WWW-Authenticate"]


@pytest.mark.parametrize(
    ("path", "status"),
    [("/healthz", 200), ("/admin/login/", 200), ("/admin", 302), ("/health", 401), ("/metrics", 401), ("/", 401)],
)
def test_with_keys_only_liveness_and_login_are_open(node_client: Client, path: str, status: int) -> None:
    key("read")

    assert node_client.get(path, headers={"Host": "db.example"}, REMOTE_ADDR="10.0.0.7").status_code == status


def test_readiness_is_open_with_keys(node_client: Client) -> None:
    key("read")

    assert node_client.get("/readyz", REMOTE_ADDR="10.0.0.7").status_code in (200, 503)


def test_allowed_hosts_hold_once_there_are_keys(node_client: Client) -> None:
    text = key("read")

    with override_settings(ALLOWED_HOSTS=["db.example"]):
        good = node_client.get("/metrics", headers={**bearer(text), "Host": "db.example:8000"})
        bad = node_client.get("/metrics", headers={**bearer(text), "Host": "evil.example"})

    assert good.status_code == 200
    assert bad.status_code == 400
    assert bad.json()["error"]["field"] == "Host"


# Sessions


@pytest.fixture
def staff() -> User:
    key("read")
    return User.objects.create_user("ada", password="x", is_staff=True)


def test_a_staff_session_may_read(node_client: Client, staff: User) -> None:
    node_client.force_login(staff)

    assert node_client.get("/metrics").status_code == 200


def test_a_session_of_a_user_who_is_not_staff_may_nothing(node_client: Client, staff: User) -> None:
    User.objects.filter(pk=staff.pk).update(is_staff=False)
    node_client.force_login(staff)

    assert node_client.get("/namespaces").status_code == 403


def test_a_staff_session_needs_the_permission_for_the_scope(node_client: Client, staff: User) -> None:
    node_client.force_login(staff)
    refused = node_client.post("/log/level?level=info", content_type=JSON)
    staff.user_permissions.add(Permission.objects.get(codename="operate_node"))
    allowed = node_client.post("/log/level?level=info", content_type=JSON)

    assert refused.status_code == 403
    assert refused.json()["error"]["detail"] == {"scope": ["operate"]}
    assert allowed.status_code == 200


def test_a_session_needs_a_csrf_token_to_change_something(staff: User) -> None:
    User.objects.filter(pk=staff.pk).update(is_superuser=True)
    client = Client(enforce_csrf_checks=True)
    client.force_login(staff)
    without = client.post("/log/level?level=info", content_type=JSON)
    client.get("/admin/")
    token = next(cookie.value for name, cookie in client.cookies.items() if name.startswith("csrftoken_"))
    with_token = client.post("/log/level?level=info", content_type=JSON, headers={"X-CSRFToken": token})

    assert without.status_code == 403
    assert without.json()["error"]["code"] == "csrf_failed"
    assert with_token.status_code == 200


def test_a_key_needs_no_csrf_token() -> None:
    client = Client(enforce_csrf_checks=True)

    assert client.post("/log/level?level=info", content_type=JSON, headers=bearer(key("operate"))).status_code == 200


def test_a_stale_session_cookie_is_401(node_client: Client, staff: User) -> None:
    node_client.force_login(staff)
    node_client.get("/namespaces")
    staff.is_active = False
    staff.save()

    assert node_client.get("/namespaces").status_code == 401


# The command, the admin, the books


def test_create_api_key_prints_the_key_alone_on_standard_output(node_client: Client) -> None:
    out = StringIO()
    call_command("create_api_key", "loader", "--scope", "read", "--scope", "write", stdout=out, stderr=StringIO())

    text = out.getvalue().strip()
    assert ApiKey.objects.get().scopes == ["read", "write"]
    assert text not in str(ApiKey.objects.values().get())
    assert node_client.get("/metrics", headers=bearer(text)).status_code == 200


def test_the_admin_shows_a_new_key_once(admin_client: Client) -> None:
    answer = admin_client.post("/admin/mlvdb_site/apikey/add/", {"name": "loader", "scopes": ["write"]}, follow=True)

    made = ApiKey.objects.get()
    assert f"mlvdb_{made.prefix}_" in answer.content.decode()
    assert made.created_by is not None
    again = admin_client.get("/admin/mlvdb_site/apikey/")
    assert made.prefix in again.content.decode()
    assert f"mlvdb_{made.prefix}_" not in again.content.decode()


def test_the_admin_asks_before_it_revokes(admin_client: Client) -> None:
    key("read")
    made = ApiKey.objects.get()
    chosen = {"action": "revoke", "_selected_action": [str(made.pk)]}
    asked = admin_client.post("/admin/mlvdb_site/apikey/", chosen)
    assert ApiKey.objects.get().revoked_at is None
    admin_client.post("/admin/mlvdb_site/apikey/", {**chosen, "confirmed": "1"})

    assert "No active key will be left" in asked.content.decode()
    assert ApiKey.objects.get().revoked_at is not None


def test_a_key_can_not_be_deleted_in_the_admin(admin_client: Client) -> None:
    key("read")

    assert admin_client.post(f"/admin/mlvdb_site/apikey/{ApiKey.objects.get().pk}/delete/").status_code == 403


@pytest.mark.parametrize("scopes", [[], ["admin"]])
def test_a_key_needs_known_scopes(scopes: list[str]) -> None:
    with pytest.raises(ValueError, match="scope"):
        keys.key_create(name="x", scopes=scopes)


@pytest.mark.django_db(transaction=True)
def test_the_last_use_is_written_behind_the_request_and_once_a_minute(
    node_client: Client, monkeypatch: pytest.MonkeyPatch, wait_for: Callable[..., Any]
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(access, "last_used", keys.LastUsed())
    text = key("read")
    before = timezone.now()

    node_client.get("/health", headers=bearer(text))

    used = wait_for(lambda: ApiKey.objects.get().last_used_at, what="the recorded use")
    assert used >= before
    assert access.last_used.touch(ApiKey.objects.get().pk) is None


def test_a_key_made_by_another_process_holds_at_the_next_request(node_client: Client) -> None:
    node_client.get("/health")
    fresh = keys.KeyRing()
    text = key("read")

    assert node_client.get("/health").status_code == 401
    markers = access.markers_read()
    assert keys.key_matching(text, fresh.keys(markers.keys)) is not None
