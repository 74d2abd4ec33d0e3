"""A node's admin in a test: who is logged in, and what a page says."""

from __future__ import annotations

import html
import re
from typing import Any

from django.contrib.auth.models import Permission, User
from django.http import HttpResponse
from django.test import Client


def client_of(user: User) -> Client:
    """Return a client that is logged in."""
    client = Client()
    client.force_login(user)
    return client


def staff_with(*permissions: str) -> Client:
    """Return a client of a member of staff who has these permissions of the app, and no others."""
    user = User.objects.create_user("staff-" + "-".join(permissions or ("none",)), password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(content_type__app_label="vectors", codename__in=permissions))
    return client_of(user)


def text_of(response: HttpResponse) -> str:
    """Return the page's text: without tags, entities resolved, white space made one."""
    page = re.sub(r"<(script|style).*?</\1>", " ", response.content.decode(), flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def cells(response: HttpResponse, column: str) -> list[str]:
    """Return the texts of a column of a change list."""
    found = re.findall(rf'<t[dh] class="field-{column}[^"]*">(.*?)</t[dh]>', response.content.decode(), flags=re.S)
    return [" ".join(html.unescape(re.sub(r"<[^>]+>", " ", cell)).split()) for cell in found]


def messages_of(response: Any) -> list[str]:
    """Return the messages on a page."""
    return [str(message) for message in response.context["messages"]]
