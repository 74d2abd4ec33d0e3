"""Recall in the admin: the history of its measures, what a namespace's cell says, the action, and the banner."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from django.contrib import admin, messages
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.dateformat import format as date_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timesince import timesince

from vectors import services
from vectors.admin.storage import ReadOnlyAdmin
from vectors.models import IndexRequest, Namespace, QuerySample, RecallMeasure
from vectors.query_processor import NamespaceInfo
from vectors.recall.measures import shortfalls

_SHOWN = 3


@admin.register(RecallMeasure)
class RecallMeasureAdmin(ReadOnlyAdmin):
    """What was measured, newest first."""

    list_display = ("namespace", "shard", "measured", "promised", "verdict", "source", "index", "took", "measured_at")
    list_filter = ("is_short", "is_real")
    list_select_related = ("namespace__shard",)
    search_fields = ("namespace__name",)

    @admin.display(description="shard", ordering="namespace__shard__label")
    def shard(self, measure: RecallMeasure) -> str:
        """Return the shard whose part of the namespace was measured."""
        return measure.namespace.shard.label

    @admin.display(description="measured", ordering="recall")
    def measured(self, measure: RecallMeasure) -> str:
        """Return the share found."""
        return f"{measure.recall:.4f}"

    @admin.display(description="promised", ordering="target")
    def promised(self, measure: RecallMeasure) -> str:
        """Return the share promised at that moment."""
        return f"{measure.target:g}"

    @admin.display(description="verdict", ordering="is_short")
    def verdict(self, measure: RecallMeasure) -> str | SafeString:
        """Return whether the promise was kept, as far as so many queries can tell."""
        return format_html('<strong class="shard-damaged">{}</strong>', "SHORT") if measure.is_short else "kept"

    @admin.display(description="measured with")
    def source(self, measure: RecallMeasure) -> str:
        """Return what was searched for."""
        return source_of(measure)

    @admin.display(description="rows with an index")
    def index(self, measure: RecallMeasure) -> str:
        """Return how many of the rows lie in segments with an index."""
        return f"{measure.indexed_rows:,} of {measure.rows:,}"

    @admin.display(description="took", ordering="took_s")
    def took(self, measure: RecallMeasure) -> str:
        """Return how long it took."""
        return f"{measure.took_s:.2f} s"


def source_of(measure: RecallMeasure) -> str:
    """Return in words what was searched for."""
    if not measure.queries:
        return "nothing: every search was exact"
    kind = "recent queries" if measure.is_real else "rows of its own"
    return f"{measure.queries:,} {kind}"


def measured_cell(info: NamespaceInfo, measure: RecallMeasure | None) -> str | SafeString:
    """Return what the index of a namespace finds, flagged where that falls short of the promise."""
    if info.measured_recall is None:
        return "exact"
    shown = f"{info.measured_recall:.3f}"
    if measure is not None and measure.is_short and info.measured_recall < info.recall_target:
        return format_html('<strong class="shard-damaged" title="{}">{}</strong>', source_of(measure), shown)
    return shown


def measured_words(namespace: Namespace, info: NamespaceInfo | None, measure: RecallMeasure | None) -> str | SafeString:
    """Return in a sentence what is known of a namespace's recall: how much, from what, since when."""
    if info is None or info.measured_recall is None:
        return "every search is exact"
    if measure is None:
        return f"{info.measured_recall:.4f}, when the indexes were tuned; not measured since"
    return format_html(
        '{} with {}, {} (<a href="{}?namespace__id__exact={}">all measures</a>)',
        f"{measure.recall:.4f}{', SHORT of what is promised,' if measure.is_short else ''}",
        source_of(measure),
        date_format(timezone.localtime(measure.measured_at), "Y-m-d H:i"),
        reverse("admin:vectors_recallmeasure_changelist"),
        namespace.pk,
    )


def queries_words(namespace: Namespace) -> str:
    """Return how many recent queries are kept of a namespace, and how old the newest is."""
    own = QuerySample.objects.filter(namespace=namespace.uid)
    newest = own.order_by("-pk").first()
    if newest is None:
        return "none yet"
    return f"{own.count():,}, the newest {timesince(newest.created_at)} old"


def wish_words(namespace: Namespace) -> str:
    """Return why the indexes of a namespace are to be made anew, where they are."""
    wish = IndexRequest.objects.filter(namespace=namespace).order_by("-pk").first()
    return "no" if wish is None else f"yes, {wish.get_reason_display()}, {timesince(wish.created_at)} ago"


def recall_ask(request: HttpRequest, namespaces: Sequence[tuple[Namespace, NamespaceInfo | None]]) -> list[Namespace]:
    """Ask for a measure of each namespace with an index, tell the person, and return those it was asked for."""
    by_shard: dict[str, list[Namespace]] = defaultdict(list)
    exact: list[Namespace] = []
    for namespace, info in namespaces:
        if info is not None and not info.indexed_rows:
            exact.append(namespace)
        else:
            by_shard[namespace.shard.uid].append(namespace)
    for name in _names(exact):
        messages.info(request, f"{name} has no index: every search of it is exact.")
    asked: list[Namespace] = []
    for shard_uid, rows in by_shard.items():
        if services.recall_measure_request(shard_uid, [row.uid for row in rows]):
            asked.extend(rows)
        else:
            messages.error(request, "The broker is down and did not take the request. Nothing was measured.")
    if asked:
        names = ", ".join(_names(asked))
        messages.success(request, f"The broker took the request: a Celery worker measures the recall of {names}.")
    return asked


def _names(namespaces: Sequence[Namespace]) -> list[str]:
    """Return the names, each once: of a namespace there may be a part in several shards."""
    return list(dict.fromkeys(map(str, namespaces)))


def recall_warnings() -> Sequence[str]:
    """Return sentences about namespaces whose recall falls short; named in the AppConfig as `admin_warnings`."""
    short = shortfalls()
    url = reverse("admin:vectors_recallmeasure_changelist")
    sentences: list[str] = [
        format_html(
            'Searches of namespace <a href="{}?namespace__id__exact={}">{}</a> find {} of the true neighbours, {} are'
            " promised, measured with {}.",
            url,
            measure.namespace_id,
            measure.namespace.name,
            f"{measure.recall:.3f}",
            f"{measure.namespace.recall_target:g}",
            source_of(measure),
        )
        for measure in short[:_SHOWN]
    ]
    if len(short) > _SHOWN:
        sentences.append(
            format_html(
                'The recall of <a href="{}?is_short__exact=1">{} more namespaces</a> falls short.',
                url,
                len(short) - _SHOWN,
            )
        )
    return sentences
