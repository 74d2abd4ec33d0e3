"""Segments that are merged and get indexes: written, looked at, and met with something else at the worst moment."""

from __future__ import annotations

from vectors.models import Namespace, ShardHead
from vectors.query_processor import SearchRequest
from vectors.store import merging
from vectors.store.manifests import read_manifest, segment_directory
from vectors.store.verify import verify_shard

DIMENSION = 16


def segments(shard, name="a"):
    """Return the records of a namespace's segments."""
    head = ShardHead.objects.get(pk=shard.head.pk)
    manifest = read_manifest(head.pk, head.manifest)
    uid = Namespace.objects.get(name=name, dropped_at=None).uid
    return list(manifest.namespaces[uid].segments)


def rows_and_dead(shard):
    """Return (rows, deleted rows) of each segment."""
    return [(segment.rows, segment.deleted_rows) for segment in segments(shard)]


def directory_of(shard, name="a"):
    """Return where the segments of a namespace are."""
    return segment_directory(shard.head.uid, Namespace.objects.get(name=name, dropped_at=None).uid)


def load(shard, batch, *counts, start=0, seed=0, dimension=DIMENSION):
    """Write rows in several segments."""
    for count in counts:
        shard.queries.upsert_many(batch(start, count, dimension=dimension, seed=seed), namespace="a")
        shard.checkpoint()
        start += count


def exact_answer(shard, batch, *, k=20):
    """Return (key, score, metadata) of the rows nearest to a query, found by looking at every row."""
    query = batch(5, 1, dimension=DIMENSION, seed=99).values[0]
    request = SearchRequest(query=query, top_k=k, exact=True)
    return [(hit.key, hit.score, hit.metadata) for hit in shard.queries.find_similar(request, namespace="a").value]


def before_commit(monkeypatch, act):
    """Do something while a merge has written its files and has not listed them; once."""
    commit = merging.commit

    def act_first(*arguments):
        monkeypatch.setattr(merging, "commit", commit)
        act()
        return commit(*arguments)

    monkeypatch.setattr(merging, "commit", act_first)


def intact(shard, name="a"):
    """Check all of a shard and return the digest of a namespace."""
    assert verify_shard(shard.head).findings == []
    return shard.digest(name)
