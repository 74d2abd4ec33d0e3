"""What pages and commands read of a node's rows beside the vectors themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.db.models import QuerySet
from django.db.models.functions import Length

from vectors.models import LogEntry, Manifest, Namespace, ShardHead


def namespaces_alive() -> QuerySet[Namespace]:
    """Return the namespaces that are not dropped."""
    return Namespace.objects.filter(dropped_at__isnull=True)


def namespace_names(uids: Iterable[str]) -> Mapping[str, str]:
    """Return {uid: name}, dropped namespaces included."""
    return dict(Namespace.objects.filter(uid__in=set(uids)).values_list("uid", "name"))


def log_entries_without_payloads() -> QuerySet[LogEntry]:
    """Return log entries, newest first, each with `payload_bytes` in place of its payload, which may be megabytes."""
    # In the order of the unique index, so that a page of a long log is read without sorting it.
    return (
        LogEntry.objects.defer("payload")
        .annotate(payload_bytes=Length("payload"))
        .select_related("shard")
        .order_by("-shard_id", "-seq")
    )


def manifest_totals(manifest: Manifest) -> Mapping[str, int]:
    """Return how many namespaces, segments, rows and bytes of files a manifest lists; deleted rows are counted out.

    `indexed` are the segments with an index, whose files `bytes` counts too.
    """
    namespaces = manifest.document["namespaces"]
    segments: list[Mapping[str, Any]] = [
        segment for namespace in namespaces.values() for segment in namespace["segments"]
    ]
    return {
        "namespaces": len(namespaces),
        "segments": len(segments),
        "rows": sum(segment["rows"] - (segment["deleted"] or (None, 0, 0, 0))[3] for segment in segments),
        "bytes": sum(
            sum(size for size, _ in segment["files"].values()) + (segment.get("index") or (None, 0))[1]
            for segment in segments
        ),
        "indexed": sum(segment.get("index") is not None for segment in segments),
    }


def manifest_segments(manifest: Manifest) -> list[Mapping[str, Any]]:
    """Return the segments that a manifest lists, largest first: namespace, uid, rows, deleted, bytes, and of the index
    its bytes and what was said of it, or why there is none."""
    found = [
        {
            "namespace": namespace["name"],
            "uid": segment["uid"],
            "rows": segment["rows"],
            "deleted": (segment["deleted"] or (None, 0, 0, 0))[3],
            "bytes": sum(size for size, _ in segment["files"].values()),
            "index_bytes": (segment.get("index") or (None, 0))[1],
            "index": (segment.get("index") or (None, 0, 0, None))[3],
            "unindexed": segment.get("unindexed"),
        }
        for namespace in manifest.document["namespaces"].values()
        for segment in namespace["segments"]
    ]
    return sorted(found, key=lambda item: -item["bytes"])


def shards_damaged() -> QuerySet[ShardHead]:
    """Return the shard copies that have lost data."""
    return ShardHead.objects.filter(damage__isnull=False)


def shards_of(namespaces: QuerySet[Namespace]) -> list[ShardHead]:
    """Return the shard copies that some namespaces lie on, once each."""
    return list(ShardHead.objects.filter(pk__in=namespaces.order_by().values("shard_id")))
