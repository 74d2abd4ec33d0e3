"""Who may ask: without API keys programs on this machine, with keys their holders, and nodes by signature (API §7).

Runs before anything else looks at the request, under any WSGI server, and needs one short query: the marker of the
keys, so that a key made or revoked anywhere holds in every worker process from the next request on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from typing import Any

from django.conf import settings
from django.contrib import auth
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse
from django.http.request import validate_host
from django.middleware.csrf import CsrfViewMiddleware

from mlvdb_site.http.errors import error_response
from mlvdb_site.http.local import TrustedProxies, host_name, refusal
from mlvdb_site.http.scopes import OPEN_PATHS, OPERATE, READ, WRITE, is_open, scopes_sufficient
from mlvdb_site.http.signing import (
    ALIVE_PATH,
    NODE_HEADER,
    NODE_PREFIX,
    SignatureCheck,
    body_digest,
    check_signature,
    node_of,
)
from mlvdb_site.keys import KeyRing, LastUsed, key_matching
from mlvdb_site.logging_config import level_follower
from mlvdb_site.markers import markers_read

logger = logging.getLogger(__name__)

_REALM = 'Bearer realm="mlvectordb"'
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_PERMISSIONS = {WRITE: "mlvdb_site.write_vectors", OPERATE: "mlvdb_site.operate_node"}

key_ring = KeyRing()
last_used = LastUsed()


class Access:
    """Decides who is let in."""

    def __init__(self) -> None:
        self._proxies = TrustedProxies(settings.MLVDB_TRUSTED_PROXIES)
        self._hosts = frozenset(name.lower() for name in settings.MLVDB_ALLOWED_HOSTS if "*" not in name)

    def refusal(self, request: HttpRequest) -> HttpResponse | None:
        """Return the answer to a request that is not let in, in the one error shape; None to one that is."""
        meta = request.META
        if meta.get("HTTP_X_FORWARDED_PROTO") == "https" and meta.get("REMOTE_ADDR", "") in self._proxies:
            meta["wsgi.url_scheme"] = "https"
        local_refusal = refusal(meta, proxies=self._proxies, hosts=self._hosts)
        if local_refusal is None and request.path_info in OPEN_PATHS:
            # Allowed in either mode: `/healthz` answers even when the database does not.
            return None
        for_nodes = request.path_info.startswith(NODE_PREFIX)
        if for_nodes or "HTTP_X_MLVDB_SIGNATURE" in meta:
            checked = check_signature(settings.MLVDB_CLUSTER_SECRET, meta)
            if checked is SignatureCheck.VALID:
                return _signed_refusal(request, for_nodes=for_nodes)
            if checked is not SignatureCheck.ABSENT or settings.MLVDB_CLUSTER_SECRET:
                return _secret_mismatch(request, checked)
            if local_refusal is None and request.path_info == ALIVE_PATH:
                return None if node_of(meta) else _for_nodes_only(request)
        try:
            markers = markers_read()
            keys = key_ring.keys(markers.keys)
        except DatabaseError as error:
            logger.error("access not decided error=%r", str(error))
            reason = (str(error).splitlines() or ["no reason given"])[0]
            return error_response(
                request, 503, f"the node's database cannot be read: {reason}", code="storage_error", retry_after_s=1
            )
        level_follower.follow(markers.log_level)
        if not keys:
            if local_refusal is not None:
                return _protected(request, local_refusal)
            return _for_nodes_only(request) if for_nodes and node_of(meta) is None else None
        return _secret_required(request) if for_nodes else self._keyed_refusal(request, keys)

    def _keyed_refusal(self, request: HttpRequest, keys: dict[str, Any]) -> HttpResponse | None:
        host = request.META.get("HTTP_HOST")
        hosts = settings.ALLOWED_HOSTS
        if host is not None and hosts != ["*"] and not validate_host(host_name(host), hosts):
            return error_response(
                request, 400, f"Host {host!r} is not in MLVDB_ALLOWED_HOSTS", code="invalid_host", field="Host"
            )
        if is_open(request.path_info):
            return None
        authorization = request.META.get("HTTP_AUTHORIZATION")
        if authorization is not None:
            return _key_refusal(request, authorization, keys)
        return _session_refusal(request)


class AccessMiddleware(Access):
    """Lets a request in, or answers why not."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        super().__init__()
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer the request or the refusal."""
        refused = self.refusal(request)
        return self.get_response(request) if refused is None else refused


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Answer a form without its token (CSRF_FAILURE_VIEW): a page in the admin, the error shape elsewhere."""
    if request.path.startswith("/admin/"):
        from django.views.csrf import csrf_failure as csrf_failure_page

        return csrf_failure_page(request, reason=reason)
    return error_response(request, 403, f"CSRF check failed: {reason}", code="csrf_failed")


def _protected(request: HttpRequest, reason: str) -> HttpResponse:
    return error_response(
        request,
        403,
        f"This node has no API key and answers only programs on its own machine. This request is refused: {reason}."
        " Make a key with `manage.py create_api_key`, or list your proxy in MLVDB_TRUSTED_PROXIES.",
        code="protected_mode",
    )


def _signed_refusal(request: HttpRequest, *, for_nodes: bool) -> HttpResponse | None:
    """Let in a request that another node of the cluster has signed; its body is checked when it is read.

    Outside of the routes for nodes it counts as a key that may read and operate, as a node needs to register itself. It
    may not write: a recorded write that is sent once more, later, would bring an old value back.
    """
    if not for_nodes and scopes_sufficient(request.method or "", request.path_info) == (WRITE,):
        return _missing_scope(request, (WRITE,), "a node's signature")
    request.signed_digest = body_digest(request.META)  # type: ignore[attr-defined]
    return None


def _secret_mismatch(request: HttpRequest, checked: SignatureCheck) -> HttpResponse:
    reason = {
        SignatureCheck.ABSENT: "this node has MLVDB_CLUSTER_SECRET set, and the request is not signed with it",
        SignatureCheck.UNEXPECTED: "the request is signed, and this node has no MLVDB_CLUSTER_SECRET to check it with",
        SignatureCheck.WRONG: "the request is not signed with this node's MLVDB_CLUSTER_SECRET",
    }[checked]
    return error_response(
        request, 401, f"{reason}: set the same one on every node of the cluster", code="cluster_secret_mismatch"
    )


def _secret_required(request: HttpRequest) -> HttpResponse:
    return error_response(
        request,
        401,
        "this node has API keys, so other nodes must sign what they send:"
        " set MLVDB_CLUSTER_SECRET to the same text on every node of the cluster",
        code="cluster_secret_required",
    )


def _for_nodes_only(request: HttpRequest) -> HttpResponse:
    # A page in a browser can not send this header to another site without asking that site first (CORS), and no
    # node ever agrees: so no page can make a browser on this machine speak to these routes, whatever else it omits.
    return error_response(
        request,
        403,
        f"{request.path_info} is for other nodes, which name themselves in {NODE_HEADER}",
        code="nodes_only",
        field=NODE_HEADER,
    )


def _key_refusal(request: HttpRequest, authorization: str, keys: dict[str, Any]) -> HttpResponse | None:
    scheme, _, text = authorization.partition(" ")
    key = key_matching(text.strip(), keys) if scheme.lower() == "bearer" else None
    if key is None:
        return error_response(
            request,
            401,
            "the Authorization header holds no valid key: send `Authorization: Bearer mlvdb_…`",
            code="invalid_key",
            headers={"WWW-Authenticate": f'{_REALM}, error="invalid_token"'},
        )
    sufficient = scopes_sufficient(request.method or "", request.path_info)
    if sufficient and key.scopes.isdisjoint(sufficient):
        return _missing_scope(request, sufficient, f"the key {key.prefix}")
    request.api_key = key  # type: ignore[attr-defined]
    last_used.touch(key.id)
    return None


def _session_refusal(request: HttpRequest) -> HttpResponse | None:
    user = _session_user(request)
    if user is None:
        return error_response(
            request,
            401,
            "this node needs a key (`Authorization: Bearer mlvdb_…`) or a login at /admin/login/",
            code="not_authenticated",
            detail={"login": f"/admin/login/?next={request.path}"},
            headers={"WWW-Authenticate": _REALM},
        )
    if not user.is_staff:
        return error_response(request, 403, f"the user {user} is not staff", code="permission_denied")
    sufficient = scopes_sufficient(request.method or "", request.path_info)
    if sufficient and READ not in sufficient and not any(user.has_perm(_PERMISSIONS[scope]) for scope in sufficient):
        return _missing_scope(request, sufficient, f"the user {user}")
    if request.method not in _SAFE_METHODS:
        check = _CsrfCheck(_unused)
        check.process_request(request)
        reason = check.process_view(request, _unused, (), {})
        if reason:
            return csrf_failure(request, reason=str(reason))
    return None


def _session_user(request: HttpRequest) -> Any:
    """Return the user logged in, None for nobody. The session middleware, which comes later, loads its own."""
    session_key = request.COOKIES.get(settings.SESSION_COOKIE_NAME)
    if not session_key:
        return None
    request.session = import_module(settings.SESSION_ENGINE).SessionStore(session_key)
    user = auth.get_user(request)
    return user if user.is_authenticated and user.is_active else None


def _missing_scope(request: HttpRequest, sufficient: tuple[str, ...], who: str) -> HttpResponse:
    wanted = " or ".join(sufficient)
    return error_response(
        request,
        403,
        f"{who} lacks the scope {wanted} that {request.method} {request.path} needs",
        code="missing_scope",
        detail={"scope": list(sufficient)},
        headers={"WWW-Authenticate": f'{_REALM}, error="insufficient_scope", scope="{" ".join(sufficient)}"'},
    )


class _CsrfCheck(CsrfViewMiddleware):
    def _reject(self, request: HttpRequest, reason: str) -> Any:
        return reason


def _unused(request: HttpRequest) -> HttpResponse:
    return HttpResponse()
