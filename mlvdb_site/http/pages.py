"""Django's middlewares for pages, skipped where a program talks to the API.

Sessions, CSRF, messages and their like cost more than many an answer. A request is *plain* when it carries no session
cookie and does not ask for HTML: it has no session to load, and no browser shows its answer in a frame. Browsers and
the admin get the whole chain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from django.conf import settings
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.auth.models import AnonymousUser
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponse, HttpResponseForbidden
from django.middleware.clickjacking import XFrameOptionsMiddleware
from django.middleware.common import CommonMiddleware
from django.middleware.csrf import CsrfViewMiddleware
from django.middleware.security import SecurityMiddleware
from django.utils.deprecation import MiddlewareMixin

_ANONYMOUS = AnonymousUser()

PLAIN_HEADERS: Final = {"X-Content-Type-Options": "nosniff"}
"""What a plain answer has of the headers of a page."""


def is_plain(request: HttpRequest) -> bool:
    """Return whether the request comes from a program and has no session."""
    meta = request.META
    return (
        "text/html" not in meta.get("HTTP_ACCEPT", "")
        and settings.SESSION_COOKIE_NAME not in meta.get("HTTP_COOKIE", "")
        and not request.path_info.startswith("/admin")
    )


class PlainMiddleware:
    """Settles once whether the rest of the chain is skipped, and does the little of it that a plain answer needs."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer the request."""
        plain = is_plain(request)
        request.is_plain = plain  # type: ignore[attr-defined]
        if not plain:
            return self.get_response(request)
        request.user = _ANONYMOUS
        response = self.get_response(request)
        headers = response.headers
        for name, value in PLAIN_HEADERS.items():
            headers[name] = value
        if not response.streaming and "Content-Length" not in headers:
            headers["Content-Length"] = str(len(response.content))
        return response


class _PagesOnly(MiddlewareMixin):
    """Mixed into a middleware of Django: a plain request passes it by."""

    def __call__(self, request: HttpRequest) -> Any:
        if request.is_plain:  # type: ignore[attr-defined]
            return self.get_response(request)
        return super().__call__(request)


class PageSecurityMiddleware(_PagesOnly, SecurityMiddleware):
    """`nosniff`, referrer and opener policies."""


class PageSessionMiddleware(_PagesOnly, SessionMiddleware):
    """`request.session`."""


class PageCommonMiddleware(_PagesOnly, CommonMiddleware):
    """The length of the answer. No redirects to a trailing slash: the admin makes its own."""

    def should_redirect_with_slash(self, request: HttpRequest) -> bool:
        """Never: API paths have none."""
        return False


class PageCsrfMiddleware(_PagesOnly, CsrfViewMiddleware):
    """Protection of forms. Without a session there is nothing to forge: see `mlvdb_site.http.access`."""

    def process_view(
        self, request: HttpRequest, callback: Any, callback_args: tuple[Any, ...], callback_kwargs: dict[str, Any]
    ) -> HttpResponseForbidden | None:
        """Check the token of a page's form."""
        if request.is_plain:  # type: ignore[attr-defined]
            return None
        return super().process_view(request, callback, callback_args, callback_kwargs)


class PageAuthenticationMiddleware(_PagesOnly, AuthenticationMiddleware):
    """`request.user`, looked up when something asks."""


class PageMessageMiddleware(_PagesOnly, MessageMiddleware):
    """Messages to the next page."""


class PageFrameMiddleware(_PagesOnly, XFrameOptionsMiddleware):
    """No page in a foreign frame."""
