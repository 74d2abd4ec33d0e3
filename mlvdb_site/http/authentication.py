"""Who the API takes the user to be: whoever the site's middleware found, looked up only when a page shows it."""

from __future__ import annotations

from typing import Any

from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request


class SiteAuthentication(BaseAuthentication):
    """The user that the site's middleware found."""

    def authenticate(self, request: Request) -> tuple[Any, None] | None:
        """Return (user, None), or None for nobody."""
        user = getattr(request._request, "user", None)
        return (user, None) if user is not None and user.is_authenticated else None

    def authenticate_header(self, request: Request) -> str:
        """Return what a 401 asks for."""
        return "Bearer"
