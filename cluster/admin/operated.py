"""The bases of the cluster's admin pages: rows to look at, and rows that a person with the right to operate changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponseBase, HttpResponseRedirect
from django.urls import reverse
from django.utils.safestring import SafeString

from cluster.admin.wording import json_block
from vectors.admin.storage import ReadOnlyAdmin
from vectors.errors import MLVectorDBError

OPERATE = "mlvdb_site.operate_node"


def actor_of(request: HttpRequest) -> str:
    """Return who asks, in the words of the cluster's history."""
    return f"user {request.user.get_username()}"


def may_operate(request: HttpRequest) -> bool:
    """Whether the person may change the node and its cluster, as over the API."""
    return request.user.has_perm(OPERATE)


def refused(request: HttpRequest, refusal: MLVectorDBError, *, subject: str = "") -> None:
    """Tell the person that a service has refused, and why."""
    messages.error(request, f"{f'{subject}: refused' if subject else 'Refused'}: {refusal.message}")


def chosen_ids(request: HttpRequest) -> set[int]:
    """Return the keys of the rows that a query names (`id`, repeated); what is no key is passed over."""
    return {int(text) for text in request.GET.getlist("id") if text.isascii() and text.isdigit() and len(text) <= 18}


class ClusterAdmin(admin.ModelAdmin):
    """Rows that are changed through `cluster.services`, by those who have Django's permission and may operate."""

    class Media:
        css = {"all": ("cluster/admin.css",)}

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Django's permission, and the right to operate."""
        return may_operate(request) and super().has_add_permission(request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Django's permission, and the right to operate."""
        return may_operate(request) and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Django's permission, and the right to operate."""
        return may_operate(request) and super().has_delete_permission(request, obj)

    def list_url(self) -> str:
        """Return the URL of the list."""
        return self.view_url("changelist")

    def view_url(self, name: str, *arguments: object) -> str:
        """Return the URL of one of the model's views."""
        model = f"{self.opts.app_label}_{self.opts.model_name}"
        return reverse(f"{self.admin_site.name}:{model}_{name}", args=arguments)

    def to_list(self) -> HttpResponseRedirect:
        """Return to the list."""
        return HttpResponseRedirect(self.list_url())

    def own_view(self, view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
        """Return a view of the admin's, with its login and headers."""
        return self.admin_site.admin_view(view)


class RecordAdmin(ReadOnlyAdmin):
    """Rows to look at; counting all of a long table is left out."""

    show_full_result_count = False
    list_per_page = 50

    class Media:
        css = {"all": ("cluster/admin.css",)}


def block(value: object) -> SafeString | str:
    """Return a JSON column for a page."""
    return "–" if value in (None, {}, []) else json_block(value)
