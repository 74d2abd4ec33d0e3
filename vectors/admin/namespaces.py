"""Namespaces: list, make, change, drop, checkpoint, and the page of their vectors.

Django's admin wraps a change in one transaction; the log appends in a durable transaction of its own and refuses to be
part of another. So the views below run without one, the service's transaction is the change, and the history row
follows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db.models import Min, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.template.defaultfilters import filesizeformat
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.dateformat import format as date_format
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.views.decorators.csrf import csrf_protect

from vectors.admin.checkpoints import checkpoint_ask, damage_tell
from vectors.admin.forms import NamespaceForm
from vectors.admin.recall import measured_cell, measured_words, queries_words, recall_ask, wish_words
from vectors.admin.vector_pages import vectors_page
from vectors.errors import MLVectorDBError
from vectors.models import Namespace
from vectors.query_processor import WHAT_IS_THERE, NamespaceInfo, query_processor
from vectors.recall.measures import newest_measures
from vectors.selectors import namespaces_alive, shards_of

_UNKNOWN = "–"
_STATE = ("uid", "rows", "segments", "tail_rows", "size", "created_at")
_RECALL = ("indexed_rows", "recall_known", "queries_kept", "tuned_anew")
_REFUSAL = "_namespace_refusal"


class NamespaceList(ChangeList):
    """A page of namespaces, each with what the engine knows of it: one call for the page."""

    def get_queryset(
        self, request: HttpRequest, exclude_parameters: list[str | None] | None = None
    ) -> QuerySet[Namespace]:
        """Return each namespace once, however many shards have a part of it here: what is shown is of all of them."""
        once = namespaces_alive().order_by().values("uid").annotate(first=Min("pk")).values("first")
        found: QuerySet[Namespace] = super().get_queryset(request, exclude_parameters)
        return found.filter(pk__in=once)

    def get_results(self, request: HttpRequest) -> None:
        """Find the rows of the page and give each its `info`."""
        super().get_results(request)
        rows: list[Namespace] = list(self.result_list)
        _inform(request, rows)
        self.result_list = rows


@admin.register(Namespace)
class NamespaceAdmin(admin.ModelAdmin):
    """Changes go through the query processor, as those of the API do: the same rules, the same log."""

    form = NamespaceForm
    list_display = (
        "name",
        "vectors",
        "dimension",
        "metric_word",
        "recall",
        "measured_recall",
        "rows",
        "segments",
        "tail_rows",
        "size",
        "created",
    )
    search_fields = ("name",)
    actions = ("checkpoint", "measure_recall")

    class Media:
        css = {"all": ("vectors/admin.css",)}

    # Columns.

    @admin.display(description="vectors")
    def vectors(self, namespace: Namespace) -> str:
        """Return a link to the rows."""
        url = reverse(f"{self.admin_site.name}:vectors_namespace_vectors", args=[namespace.pk])
        return format_html('<a href="{}">browse</a>', url)

    @admin.display(description="metric", ordering="metric")
    def metric_word(self, namespace: Namespace) -> str:
        """Return the metric in the API's word."""
        return namespace.metric

    @admin.display(description="rows")
    def rows(self, namespace: Namespace) -> str:
        """Return the number of living rows."""
        info = _info(namespace)
        return _UNKNOWN if info is None else f"{info.count:,}"

    @admin.display(description="segments")
    def segments(self, namespace: Namespace) -> str:
        """Return the number of segments on this node."""
        info = _info(namespace)
        return _UNKNOWN if info is None else str(info.segments)

    @admin.display(description="tail rows")
    def tail_rows(self, namespace: Namespace) -> str:
        """Return the number of rows that are in no segment yet."""
        info = _info(namespace)
        return _UNKNOWN if info is None else f"{info.tail_rows:,}"

    @admin.display(description="bytes")
    def size(self, namespace: Namespace) -> str:
        """Return the bytes of the engine."""
        info = _info(namespace)
        return _UNKNOWN if info is None else filesizeformat(info.size_bytes)

    @admin.display(description="recall", ordering="recall_target")
    def recall(self, namespace: Namespace) -> float:
        """Return the share of true neighbours that a search shall find."""
        return namespace.recall_target

    @admin.display(description="measured")
    def measured_recall(self, namespace: Namespace) -> str:
        """Return the share of true neighbours that the index finds; without an index every search is exact."""
        info = _info(namespace)
        if info is None:
            return _UNKNOWN
        return measured_cell(info, namespace.measure)  # type: ignore[attr-defined]

    @admin.display(description="rows with an index")
    def indexed_rows(self, namespace: Namespace) -> str:
        """Return the number of rows that are searched by index."""
        info = _info(namespace)
        return _UNKNOWN if info is None else f"{info.indexed_rows:,} of {info.count:,}"

    @admin.display(description="measured recall")
    def recall_known(self, namespace: Namespace) -> str:
        """Return what the index finds, from what that is known, and since when."""
        return measured_words(namespace, _info(namespace), namespace.measure)  # type: ignore[attr-defined]

    @admin.display(description="recent queries kept")
    def queries_kept(self, namespace: Namespace) -> str:
        """Return what the next measure and the next index have to go by."""
        return queries_words(namespace)

    @admin.display(description="to be tuned anew")
    def tuned_anew(self, namespace: Namespace) -> str:
        """Return whether the next merge makes the indexes anew, and why."""
        return wish_words(namespace)

    @admin.display(description="created", ordering="created_at")
    def created(self, namespace: Namespace) -> str:
        """Return the day; the page of the namespace has the time."""
        return date_format(timezone.localtime(namespace.created_at), "Y-m-d")

    # What is shown and asked.

    def get_queryset(self, request: HttpRequest) -> QuerySet[Namespace]:
        """Return the namespaces that are not dropped."""
        ordering = self.get_ordering(request)
        return namespaces_alive().order_by(*ordering) if ordering else namespaces_alive()

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the list that informs its rows."""
        return NamespaceList

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Namespace | None:
        """Return a namespace with its `info`."""
        namespace: Namespace | None = super().get_object(request, object_id, from_field)
        if namespace is not None:
            _inform(request, [namespace])
        return namespace

    def get_fieldsets(self, request: HttpRequest, obj: Namespace | None = None) -> Any:
        """Ask for the attributes; show the state of a namespace that is there."""
        attributes = (None, {"fields": ("name", "dimension", "metric", "recall_target", "picture")})
        if obj is None:
            return (attributes,)
        return (attributes, ("State", {"fields": _STATE}), ("Recall", {"fields": _RECALL}))

    def get_readonly_fields(self, request: HttpRequest, obj: Namespace | None = None) -> tuple[str, ...]:
        """Name, dimension and metric are fixed once a namespace exists."""
        return () if obj is None else ("name", "dimension", "metric", *_STATE, *_RECALL)

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """Return the form, with the refusal of the service when there was one to this very request."""
        form: Any = super().get_form(request, obj, change, **kwargs)
        form.refusal = getattr(request, _REFUSAL, None)
        return form

    # Changes.

    @method_decorator(csrf_protect)
    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        """Make or change; a refusal of the service comes back as an error of the form."""
        if object_id is not None and request.method == "GET":
            damage_tell(request)
        try:
            return self._changeform_view(request, object_id, form_url, extra_context)  # type: ignore[attr-defined]
        except MLVectorDBError as refusal:
            setattr(request, _REFUSAL, refusal)
            return self._changeform_view(request, object_id, form_url, extra_context)  # type: ignore[attr-defined]

    def save_model(self, request: HttpRequest, obj: Namespace, form: Any, change: bool) -> None:
        """Make or change through the query processor, and take over the row it wrote."""
        if change:
            query_processor().namespace_put(obj.name, recall_target=obj.recall_target, picture=obj.picture)
            return
        query_processor().namespace_put(
            obj.name,
            dimension=obj.dimension,
            metric=obj.metric,
            recall_target=obj.recall_target,
            picture=obj.picture,
        )
        obj.__dict__.update(namespaces_alive().filter(name=obj.name)[:1].get().__dict__)

    @method_decorator(csrf_protect)
    def delete_view(self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None) -> Any:
        """Ask, then drop."""
        try:
            return self._delete_view(request, object_id, extra_context)  # type: ignore[attr-defined]
        except MLVectorDBError as refusal:
            return _refused(request, refusal)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """List; a refusal of an action comes back as a message."""
        if request.method == "GET":
            damage_tell(request)
        try:
            return super().changelist_view(request, extra_context)
        except MLVectorDBError as refusal:
            return _refused(request, refusal)

    def get_deleted_objects(
        self, objs: Sequence[Any] | QuerySet[Any], request: HttpRequest
    ) -> tuple[list[Any], dict[Any, Any], set[Any], list[Any]]:
        """Say what a drop takes with it: rows, not only the namespace."""
        namespaces: list[Namespace] = list(objs)
        _inform(request, namespaces)
        infos = [_info(namespace) for namespace in namespaces]
        rows = sum(info.count for info in infos if info is not None)
        named = [
            format_html("Namespace {} with {}", namespace, "unknown rows" if info is None else _counted(info.count))
            for namespace, info in zip(namespaces, infos, strict=True)
        ]
        lacking = set() if self.has_delete_permission(request) else {self.opts.verbose_name}
        return named, {"namespaces": len(namespaces), "rows": f"{rows:,}"}, lacking, []

    def log_deletions(self, request: HttpRequest, queryset: Any) -> list[Any]:
        """Write nothing: Django asks for this before the deletion, which may yet be refused. See `_drop`."""
        return []

    def delete_model(self, request: HttpRequest, obj: Namespace) -> None:
        """Drop a namespace."""
        self._drop(request, [obj])

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Namespace]) -> None:
        """Drop namespaces."""
        self._drop(request, queryset)

    def _drop(self, request: HttpRequest, namespaces: Iterable[Namespace]) -> None:
        for namespace in list(namespaces):
            dropped = query_processor().namespace_drop(namespace.name)
            super().log_deletions(request, [namespace])  # type: ignore[arg-type]
            messages.info(request, f"{_counted(dropped.count)} went with namespace {namespace}.")

    @admin.action(description="Checkpoint now: turn the tail into segments", permissions=["change"])
    def checkpoint(self, request: HttpRequest, queryset: QuerySet[Namespace]) -> None:
        """Ask for a checkpoint of the shards that the namespaces lie on."""
        parts = _parts(queryset)
        asked = {shard.pk for shard in checkpoint_ask(request, shards_of(parts))}
        uids = {part.uid for part in parts if part.shard_id in asked}
        for namespace in queryset:
            if namespace.uid in uids:
                self.log_change(request, namespace, "Asked for a checkpoint.")

    @admin.action(description="Measure recall now", permissions=["change"])
    def measure_recall(self, request: HttpRequest, queryset: QuerySet[Namespace]) -> None:
        """Ask for a measure of the namespaces that have an index."""
        parts = list(_parts(queryset).select_related("shard"))
        _inform(request, parts)
        uids = {part.uid for part in recall_ask(request, [(part, _info(part)) for part in parts])}
        for namespace in queryset:
            if namespace.uid in uids:
                self.log_change(request, namespace, "Asked for a measure of its recall.")

    # The page of vectors.

    def get_urls(self) -> list[URLPattern]:
        """Add the page of vectors."""
        view = self.admin_site.admin_view(self.vectors_view)
        return [path("<path:object_id>/vectors/", view, name="vectors_namespace_vectors"), *super().get_urls()]

    def vectors_view(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        """Browse and search the rows of a namespace."""
        namespace = self.get_object(request, object_id)
        if not self.has_view_permission(request, namespace):
            raise PermissionDenied
        if namespace is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined]
        damage_tell(request)
        page, status = vectors_page(namespace, request)
        context = {
            **self.admin_site.each_context(request),
            **page,
            "title": f"Vectors of {namespace}",
            "subtitle": None,
            "opts": self.opts,
            "namespace": namespace,
            "info": _info(namespace),
            "media": self.media,
            "has_change_permission": self.has_change_permission(request, namespace),
        }
        return TemplateResponse(request, "admin/vectors/namespace/vectors.html", context, status=status)


def _parts(namespaces: QuerySet[Namespace]) -> QuerySet[Namespace]:
    """Return namespaces in all shards that have a part of them here."""
    return namespaces_alive().filter(uid__in=namespaces.order_by().values("uid")).order_by("name", "pk")


def _info(namespace: Namespace) -> NamespaceInfo | None:
    return getattr(namespace, "info", None)


def _counted(rows: int) -> str:
    return f"{rows:,} row{'' if rows == 1 else 's'}"


def _inform(request: HttpRequest, namespaces: Iterable[Namespace]) -> None:
    """Give each namespace its `info`, None, and a message, while the engine cannot tell; and its newest `measure`."""
    namespaces = list(namespaces)
    measures = newest_measures(namespaces)
    try:
        details = {info.uid: info for info in query_processor().namespace_details(options=WHAT_IS_THERE).value}
    except MLVectorDBError as error:
        messages.warning(request, f"Rows and sizes are not known now: {error.message}")
        details = {}
    for namespace in namespaces:
        namespace.info = details.get(namespace.uid)  # type: ignore[attr-defined]
        namespace.measure = measures.get(namespace.pk)  # type: ignore[attr-defined]


def _refused(request: HttpRequest, refusal: MLVectorDBError) -> HttpResponseRedirect:
    messages.error(request, f"Refused: {refusal.message}")
    return HttpResponseRedirect(request.get_full_path())
