"""A merge that is killed anywhere: the manifest is the old one or the new one, no row is lost, and leftovers go."""

from __future__ import annotations

import os
import random

import pytest

from tests.vectors.crash_lines import killed_at, lines_of
from vectors import runtime
from vectors.engine import ids
from vectors.models import Lease, ShardHead
from vectors.store import (
    checkpoint,
    cleaning,
    leases,
    low_priority,
    merge_commit,
    merge_plan,
    merge_writing,
    merging,
    row_order,
    segment_files,
    segment_writing,
)
from vectors.store.manifests import read_manifest, segment_directory
from vectors.store.verify import verify_shard

TRACED = {
    module.__file__
    for module in (
        checkpoint,
        cleaning,
        leases,
        low_priority,
        merge_commit,
        merge_plan,
        merge_writing,
        merging,
        row_order,
        segment_files,
        segment_writing,
    )
}
SAMPLE = int(os.environ.get("MLVDB_TEST_CRASH_LINES", "24"))


def listed(shard):
    """Return {namespace uid: {segment uid: names of its files of deletions and indexes}} of the newest manifest."""
    head = ShardHead.objects.get(pk=shard.head.pk)
    return {
        uid: {
            segment.uid: {segment.deleted, segment.index.name if segment.index else None} - {None}
            for segment in record.segments
        }
        for uid, record in read_manifest(head.pk, head.manifest).namespaces.items()
    }


def found(shard):
    """Return the same of the files that are there."""
    root = segment_directory(shard.head.uid, "")
    return {
        space.name: {
            segment.name: {path.name for path in segment.iterdir() if "deleted." in path.name or "index." in path.name}
            for segment in space.iterdir()
        }
        for space in root.iterdir()
    }


@pytest.mark.slow
@pytest.mark.parametrize("with_index", [False, True])
def test_a_merge_killed_before_any_line_leaves_the_old_segments_or_the_new_ones(
    shard, batch, settings, tmp_path, monkeypatch, with_index
):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    settings.MLVDB_INDEX_MIN_ROWS = 300 if with_index else 1_000_000
    settings.MLVDB_INDEX_THREADS = 1
    size, dimension = (300, 16) if with_index else (40, 4)
    shard.queries.upsert_many(batch(0, 2 * size, dimension=dimension), namespace="a")
    shard.checkpoint()
    lines, place, start = None, 0, 2 * size
    commit = merging.commit

    def merge():
        """Merge, with rows deleted and written between the files and their listing."""

        def change_first(*arguments):
            monkeypatch.setattr(merging, "commit", commit)
            shard.queries.delete(namespace="a", keys=[ids.key_of(number) for number in doomed])
            shard.checkpoint()
            return commit(*arguments)

        monkeypatch.setattr(merging, "commit", change_first)
        try:
            shard.merge()
        finally:
            monkeypatch.setattr(merging, "commit", commit)

    while lines is None or place < len(lines):
        shard.queries.upsert_many(batch(start, size, dimension=dimension), namespace="a")
        shard.checkpoint()
        doomed = range(start, start + size, 7)
        # As many go as come, so that every round is as long as the first.
        old = range(start - 2 * size, start - size)
        shard.queries.delete(namespace="a", keys=[ids.key_of(number) for number in old])
        shard.checkpoint()
        start += size
        before = shard.digest("a")
        if lines is None:
            lines = lines_of(merge, tmp_path / "lines", traced=TRACED)
            assert len(lines) > 200
            lines = random.Random(seed).sample(lines, k=min(SAMPLE, len(lines)))
            runtime.reset()
            continue
        line = lines[place]
        place += 1
        came_to_it = killed_at(merge, line, traced=TRACED)
        runtime.reset()
        # Others would take the lease of the dead over after a while.
        Lease.objects.filter(name=leases.checkpoint_lease(shard.head.pk)).update(owner="")
        assert verify_shard(shard.head).findings == [], line
        after = shard.digest("a")
        removed = len(range(doomed.start, doomed.stop, doomed.step))
        assert after[0] in ((before[0], before[0] - removed) if came_to_it else (before[0] - removed,)), line
        shard.queries.delete(namespace="a", keys=[ids.key_of(number) for number in doomed])
        shard.checkpoint()
        expected = shard.digest("a")
        shard.merge()
        # Twice something new: what the manifest before the newest lists is kept.
        for _ in range(2):
            shard.queries.upsert_many(batch(0, 1, dimension=dimension), namespace="z")
            shard.checkpoint()
        assert verify_shard(shard.head).findings == [], line
        assert shard.digest("a") == expected, line
        assert found(shard) == listed(shard), line
