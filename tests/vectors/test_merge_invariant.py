"""Segments, merges and tail are the operations, whatever happens in whichever order, on disk and as they are served."""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.engine.oracle import Oracle
from tests.engine.test_engine_oracle import UID, clears, deletes, patches, upserts
from vectors import runtime
from vectors.engine import search
from vectors.engine.distances import Query
from vectors.engine.filters import parse_filter
from vectors.engine.operations import NamespacePut, encode
from vectors.models import Lease, Namespace, ShardHead
from vectors.store import log, merge_commit, merge_steps, merging, recovery
from vectors.store.checkpoint import checkpoint_run
from vectors.store.verify import verify_shard

MERGES = ["no merge", "no merge", "merge", "merge", "merge_write", "deletions_write", "commit", "_list", "clean"]
PLACES = {
    "merge_write": merge_steps,
    "deletions_write": merge_steps,
    "commit": merging,
    "_list": merge_commit,
    "clean": merge_commit,
}
BETWEEN = ["nothing", "tail", "tail", "checkpoint"]
SERVED = ["late", "applied", "applied", "swapped", "swapped"]


class Crash(BaseException):
    """The process dies here: nothing after it runs, clean-up included."""


@dataclass
class Round:
    """Some operations, a checkpoint, a merge with something in the middle of it, and how a process serves meanwhile."""

    operations: list
    served: str
    tail: list
    merge: str
    between: str
    served_after: str


operation = st.one_of(upserts(), upserts(), upserts(), deletes(), patches(), clears())
rounds = st.builds(
    Round,
    st.lists(operation, min_size=1, max_size=3),
    st.sampled_from(SERVED),
    st.lists(operation, max_size=2),
    st.sampled_from(MERGES),
    st.sampled_from(BETWEEN),
    st.sampled_from(SERVED),
)


@given(story=st.lists(rounds, min_size=3, max_size=8))
@hypothesis_settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.large_base_example,
        HealthCheck.data_too_large,
    ],
)
def test_invariant_1_engine_is_segments_plus_operations_with_merges_anywhere(shard, settings, story):
    settings.MLVDB_SEGMENT_TIER = 2
    shard.restart()
    ShardHead.objects.all().delete()
    head = ShardHead.objects.create(label=f"shard_{time.monotonic_ns()}")
    # Of namespaces that are not in the registry nothing is merged.
    Namespace.objects.create(shard=head, uid=UID, name="a", dimension=3, metric="cosine")
    oracle = Oracle()
    seq = 0
    served = runtime.ShardRuntime(head.pk, budget=None)

    def append(*operations):
        nonlocal seq
        for item in operations:
            payload = encode(item)
            with log.append_transaction(head.pk) as open_log:
                seq = open_log.add(UID, item.kind, item.rows, payload, zlib.crc32(payload)).seq
            oracle.apply(seq, UID, item)

    def serve(how):
        if how != "late":
            served.fresh(timeout_s=10)
        if how == "swapped":
            served.swap()

    append(NamespacePut("a", 3, "cosine", 0.99))
    for item in story:
        append(*item.operations)
        checkpoint_run(head.uid, owner="test")
        serve(item.served)
        append(*item.tail[:1])
        if item.merge != "no merge":
            merge(head, item, lambda item=item: append(*item.tail[1:]))
        serve(item.served_after)
        check(head, served, oracle, seq)
    served.swap()
    check(head, served, oracle, seq)
    assert [line for line in verify_shard(head).findings if "registry" not in line] == []


def merge(head, item, append):
    """Merge all there is, dying just before the point named, with more in the log before the commit."""
    with pytest.MonkeyPatch.context() as patch:
        commit = merging.commit

        def die(*args, **kwargs):
            raise Crash

        def after(*args):
            patch.setattr(merging, "commit", commit)
            if item.between != "nothing":
                append()
            if item.between == "checkpoint":
                checkpoint_run(head.uid, owner="test")
            return commit(*args)

        patch.setattr(merging, "commit", after)
        if item.merge != "merge":
            patch.setattr(PLACES[item.merge], item.merge, die)
            patch.setattr(merge_steps, "discard", lambda *args: None)
        try:
            merging.merge_run(head.uid, owner="test", rest_s=0)
        except Crash:
            Lease.objects.update(owner="")


def check(head, served, oracle, seq):
    """Compare what is on disk, and what a process serves, with the truth."""
    expected = oracle.search(UID, np.array([1.0, 0.5, -0.25], dtype=np.float32), k=6, metric="cosine")
    for opened in (recovery.open_shard(head.pk), served.fresh(timeout_s=10)):
        assert opened.engine.seq == seq
        view = opened.engine.view("a")
        assert sorted(search.matching_keys(view, parse_filter({}))) == oracle.matching(UID, None)
        wanted = search.Wanted(Query.of(np.array([1.0, 0.5, -0.25], dtype=np.float32), "cosine"), 6)
        assert [found.key for found in search.search(view, wanted).found] == [key for key, _ in expected]
        for key, (values, _, changed_at) in oracle.rows[UID].items():
            part, row = opened.engine.find_many("a", [key])[0]
            assert part.matrix[row].tolist() == values.tolist()
            assert part.seqs[row] == changed_at
