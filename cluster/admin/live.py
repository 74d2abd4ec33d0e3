"""Pages that show rows as they are now: what is known of each, in places that are renewed while they are looked at.

A place has a name; a script fetches the parts of a page's places and puts each into its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, JsonResponse
from django.template.loader import render_to_string
from django.urls import URLPattern, path
from django.utils.safestring import SafeString

from cluster.admin.operated import ClusterAdmin, chosen_ids


def place(name: str, content: str) -> SafeString:
    """Return a part in a place that is renewed under its name."""
    return render_to_string("admin/cluster/place.html", {"name": name, "content": content})


def live_answer(places: Mapping[str, str], *, gone: bool = False) -> JsonResponse:
    """Return the parts as they are now, by the names of their places; `gone` says that the page shows too much."""
    return JsonResponse({"places": places, "gone": gone})


class NowList(ChangeList):
    """A page of rows, each with what is known of it: a constant number of queries for the page."""

    def get_results(self, request: HttpRequest) -> None:
        """Find the rows of the page and give each its `now`."""
        super().get_results(request)
        rows: list[Any] = list(self.result_list)
        for row, now in zip(rows, self.model_admin.rows_now(rows), strict=True):  # type: ignore[attr-defined]
            row.now = now
        self.result_list = rows


class LiveAdmin(ClusterAdmin):
    """Rows with their `now`, in a list and on a page of their own, both renewed while they are looked at.

    `parts` are those of a row in the list, by the names of their places.
    """

    list_per_page = 50
    parts: Mapping[str, Callable[[Any], SafeString]] = {}

    class Media:
        css = {"all": ("cluster/admin.css",)}
        js = ("cluster/live.js",)

    def rows_now(self, rows: Sequence[Any]) -> Sequence[Any]:
        """Return what is known of some rows, in their order."""
        raise NotImplementedError

    def page_part(self, row: Any) -> SafeString:
        """Return what the page of one row shows of it."""
        raise NotImplementedError

    def list_places(self) -> Mapping[str, str]:
        """Return the parts beside those of the rows of a list."""
        return {}

    def in_list(self, name: str, row: Any) -> SafeString:
        """Return a part of a row in its place in the list."""
        return place(f"{name}-{row.pk}", self.parts[name](row.now))

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the list that knows what is."""
        return NowList

    def get_urls(self) -> list[URLPattern]:
        """Add what is fetched."""
        model = f"{self.opts.app_label}_{self.opts.model_name}"
        return [
            path("live/", self.own_view(self.live_view), name=f"{model}_live"),
            path("<int:key>/live/", self.own_view(self.live_one_view), name=f"{model}_live_one"),
            *super().get_urls(),
        ]

    def live_view(self, request: HttpRequest) -> JsonResponse:
        """Return what the list shows of some rows (`id`, repeated), as it is now."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        ids = chosen_ids(request)
        rows = list(self.get_queryset(request).filter(pk__in=ids))
        places = dict(self.list_places())
        for row, now in zip(rows, self.rows_now(rows), strict=True):
            places |= {f"{name}-{row.pk}": part(now) for name, part in self.parts.items()}
        return live_answer(places, gone=len(rows) < len(ids))

    def live_one_view(self, request: HttpRequest, key: int) -> JsonResponse:
        """Return what the page of one row shows, as it is now."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        row = self.get_queryset(request).filter(pk=key).first()
        return live_answer({}, gone=True) if row is None else live_answer({self._place_of(row): self.page_part(row)})

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> Any:
        """Show what is known of a row that is there."""
        row = context.get("original")
        if row is not None:
            context["panel"] = place(self._place_of(row), self.page_part(row))
        return super().render_change_form(request, context, *args, **kwargs)

    def _place_of(self, row: Any) -> str:
        return f"{self.opts.model_name}-{row.pk}"
