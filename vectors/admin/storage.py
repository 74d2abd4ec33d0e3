"""Shards, log entries, manifests and leases: shown as they are, and changed by the store alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.defaultfilters import filesizeformat
from django.utils.html import format_html, format_html_join

from vectors.admin.checkpoints import checkpoint_ask, damage_tell
from vectors.engine import index
from vectors.models import Lease, LogEntry, Manifest, ShardHead
from vectors.selectors import log_entries_without_payloads, manifest_segments, manifest_totals, namespace_names

_SEGMENTS_SHOWN = 50
_SEGMENT_COLUMNS = ("namespace", "segment", "rows", "deleted", "bytes", "index")


class ReadOnlyAdmin(admin.ModelAdmin):
    """Rows to look at."""

    class Media:
        css = {"all": ("vectors/admin.css",)}

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Never."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Never."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Never."""
        return False


@admin.register(ShardHead)
class ShardHeadAdmin(ReadOnlyAdmin):
    """The shard copies of this node."""

    list_display = ("label", "uid", "term", "last_seq", "manifest", "manifest_seq", "tail", "state")
    fields = (
        "label",
        "uid",
        "state",
        "term",
        "last_seq",
        "incarnation",
        "manifest",
        "manifest_seq",
        "tail",
        "rows_written",
        "merged_at",
        "indexes",
        "created_at",
        "damage_report",
    )
    readonly_fields = fields
    actions = ("checkpoint",)

    @admin.display(description="tail bytes", ordering="tail_bytes")
    def tail(self, shard: ShardHead) -> str:
        """Return the log bytes that are in no segment yet."""
        return filesizeformat(shard.tail_bytes)

    @admin.display(description="state", ordering="damage")
    def state(self, shard: ShardHead) -> str:
        """Return whether the shard is whole."""
        if shard.damage is None:
            return "whole"
        return format_html('<strong class="shard-damaged">{}</strong>', "DAMAGED, read-only")

    @admin.display(description="rows written")
    def rows_written(self, shard: ShardHead) -> str:
        """Return how often a row has been written to segments: by a checkpoint once, and by merges."""
        if not shard.rows_flushed:
            return "none yet"
        written = shard.rows_flushed + shard.rows_merged
        return (
            f"{shard.rows_flushed:,} by checkpoints and {shard.rows_merged:,} again by merges:"
            f" {written / shard.rows_flushed:.1f} times each"
        )

    @admin.display(description="indexes")
    def indexes(self, shard: ShardHead) -> str:
        """Return which indexes cannot be used, and why."""
        if not index.available():
            return "faiss is not installed: every segment is searched exactly"
        if not shard.index_faults:
            return "all can be used"
        return _json_block({"searched exactly until the next merge": shard.index_faults})

    @admin.display(description="damage")
    def damage_report(self, shard: ShardHead) -> str:
        """Return what was lost."""
        return "none" if shard.damage is None else _json_block(shard.damage)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """List, and say which shards have lost data."""
        if request.method == "GET":
            damage_tell(request)
        return super().changelist_view(request, extra_context)

    def has_checkpoint_permission(self, request: HttpRequest) -> bool:
        """Who may change shards may ask for their checkpoint."""
        return request.user.has_perm("vectors.change_shardhead")

    @admin.action(description="Checkpoint now: turn the tail into segments", permissions=["checkpoint"])
    def checkpoint(self, request: HttpRequest, queryset: QuerySet[ShardHead]) -> None:
        """Ask for a checkpoint."""
        for shard in checkpoint_ask(request, list(queryset)):
            self.log_change(request, shard, "Asked for a checkpoint.")


class LogEntryList(ChangeList):
    """A page of log entries, each with the name of its namespace: one query for the page."""

    def get_results(self, request: HttpRequest) -> None:
        """Find the rows of the page and give each its `namespace_name`."""
        super().get_results(request)
        rows: list[LogEntry] = list(self.result_list)
        names = namespace_names(row.namespace for row in rows)
        for row in rows:
            row.namespace_name = names.get(row.namespace, row.namespace)  # type: ignore[attr-defined]
        self.result_list = rows


@admin.register(LogEntry)
class LogEntryAdmin(ReadOnlyAdmin):
    """The log, without the payloads."""

    list_display = ("position", "namespace_title", "kind", "rows", "payload_size", "created_at")
    list_filter = ("shard", "kind")
    list_per_page = 50
    show_full_result_count = False
    fields = ("shard", "seq", "term", "namespace", "kind", "rows", "payload_size", "crc32", "created_at")
    readonly_fields = fields

    @admin.display(description="shard: (term, seq)")
    def position(self, entry: LogEntry) -> str:
        """Return where the entry stands."""
        return f"{entry.shard}: ({entry.term}, {entry.seq})"

    @admin.display(description="namespace")
    def namespace_title(self, entry: LogEntry) -> str:
        """Return the namespace's name, its uid when no row tells the name."""
        return str(getattr(entry, "namespace_name", entry.namespace))

    @admin.display(description="payload")
    def payload_size(self, entry: LogEntry) -> str:
        """Return the size of the payload."""
        return filesizeformat(entry.payload_bytes)  # type: ignore[attr-defined]

    def get_queryset(self, request: HttpRequest) -> QuerySet[LogEntry]:
        """Return the entries without their payloads."""
        return log_entries_without_payloads()

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """Newest first."""
        return ("-shard_id", "-seq")

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the list that names namespaces."""
        return LogEntryList


@admin.register(Manifest)
class ManifestAdmin(ReadOnlyAdmin):
    """Which files stand for the operations up to a seq."""

    list_display = (
        "shard",
        "number",
        "seq",
        "term",
        "origin",
        "namespaces",
        "segments",
        "indexed",
        "rows",
        "size",
        "created_at",
    )
    list_display_links = ("number",)
    list_filter = ("shard",)
    list_select_related = ("shard",)
    ordering = ("-shard_id", "-number")
    list_per_page = 20
    fields = (
        "shard",
        "number",
        "seq",
        "term",
        "origin",
        "segments",
        "rows",
        "size",
        "crc32",
        "created_at",
        "segment_table",
        "listing",
    )
    readonly_fields = fields

    @admin.display(description="namespaces")
    def namespaces(self, manifest: Manifest) -> str:
        """Return the number of namespaces."""
        return str(manifest_totals(manifest)["namespaces"])

    @admin.display(description="segments")
    def segments(self, manifest: Manifest) -> str:
        """Return the number of segments."""
        return str(manifest_totals(manifest)["segments"])

    @admin.display(description="with an index")
    def indexed(self, manifest: Manifest) -> str:
        """Return the number of segments that have an index."""
        return str(manifest_totals(manifest)["indexed"])

    @admin.display(description="rows")
    def rows(self, manifest: Manifest) -> str:
        """Return the number of rows, without those deleted."""
        return f"{manifest_totals(manifest)['rows']:,}"

    @admin.display(description="bytes of files")
    def size(self, manifest: Manifest) -> str:
        """Return the size of the segments' files."""
        return filesizeformat(manifest_totals(manifest)["bytes"])

    @admin.display(description="largest segments")
    def segment_table(self, manifest: Manifest) -> str:
        """Return the largest segments: rows, bytes, and what is known of their indexes."""
        rows = [
            (
                item["namespace"],
                item["uid"],
                f"{item['rows'] - item['deleted']:,}",
                f"{item['deleted']:,}",
                filesizeformat(item["bytes"]),
                _index_words(item),
            )
            for item in manifest_segments(manifest)[:_SEGMENTS_SHOWN]
        ]
        head = format_html_join("", "<th>{}</th>", ((name,) for name in _SEGMENT_COLUMNS))
        body = format_html_join("", "<tr>{}</tr>", ((format_html_join("", "<td>{}</td>", zip(row)),) for row in rows))
        return format_html("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>", head, body)

    @admin.display(description="files")
    def listing(self, manifest: Manifest) -> str:
        """Return the whole document."""
        return _json_block(manifest.document)


@admin.register(Lease)
class LeaseAdmin(ReadOnlyAdmin):
    """Who is at work, on what."""

    list_display = ("name", "holder", "token", "beats")
    fields = ("name", "holder", "token", "beats")
    readonly_fields = fields

    @admin.display(description="holder")
    def holder(self, lease: Lease) -> str:
        """Return the owner."""
        return lease.owner or "free"


def _index_words(item: Mapping[str, Any]) -> str:
    """Return what is known of a segment's index."""
    about = item["index"]
    if about is not None:
        recall = f"recall {about['recall']:.4f} for {about['recall_target']:g}" if "recall" in about else "index"
        return f"{recall}, {filesizeformat(item['index_bytes'])}"
    return "exact" if item["unindexed"] is None else f"exact: {item['unindexed'].get('reason', '')}"


def _json_block(value: Any) -> str:
    return format_html('<pre class="json">{}</pre>', orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
