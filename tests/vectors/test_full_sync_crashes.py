"""A receiver that is killed anywhere in a full sync: the copy is the old one or the new one, and the sync resumes."""

from __future__ import annotations

import os
import random

import pytest

from tests.vectors.crash_lines import killed_at, lines_of
from tests.vectors.full_syncs import digests, entry, move_to_another_node, record, send_files, sync
from vectors import runtime
from vectors.engine import ids
from vectors.engine.operations import Upsert
from vectors.models import Namespace
from vectors.store import (
    cleaning,
    install,
    namespace_rows,
    partial_files,
    reconcile,
    segment_files,
    segments_aside,
    set_aside,
    staging,
)
from vectors.store.install import install as install_offer
from vectors.store.log import Position
from vectors.store.receive import receive
from vectors.store.slices import slices_in
from vectors.store.verify import verify_shard

TRACED = {
    module.__file__
    for module in (
        cleaning,
        install,
        namespace_rows,
        partial_files,
        reconcile,
        segment_files,
        segments_aside,
        set_aside,
        staging,
    )
}
SAMPLE = int(os.environ.get("MLVDB_TEST_CRASH_LINES", "40"))


@pytest.fixture
def states(shard, batch, settings, tmp_path):
    """Two states of a sender that share a segment, and a copy elsewhere that holds the first."""
    shard.queries.upsert_many(batch(0, 60), namespace="a")
    shard.queries.upsert_many(batch(0, 10, dimension=3), namespace="b")
    shard.checkpoint()
    shard.queries.delete(namespace="a", keys=[ids.key_of(number) for number in range(5)])
    shard.queries.upsert_many(batch(0, 4), namespace="c")
    shard.checkpoint()
    first = record(shard)
    shard.queries.upsert_many(batch(60, 9), namespace="a")
    shard.queries.delete(namespace="a", keys=[ids.key_of(9)])
    shard.queries.namespace_drop("b")
    shard.checkpoint()
    second = record(shard)
    move_to_another_node(shard, settings, tmp_path / "replica", uid=first.offer.shard)
    sync(first)
    return first, second


@pytest.mark.slow
def test_a_receiver_killed_before_any_line_leaves_the_old_copy_or_the_new_one(shard, batch, states, settings, tmp_path):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rows = batch(900, 1)
    term, place = 1, 0
    lines = None
    while lines is None or place < len(lines):
        # Each round the other state comes from a primary of a newer term that knows nothing of this copy's tail.
        held, wanted = states[term % 2 == 0], states[term % 2]
        uid = Namespace.objects.get(name="a", dropped_at=None).uid
        seq = held.offer.seq + 1
        tail = entry(seq, term, uid, Upsert(rows.keys, rows.values, rows.metadata))
        receive(shard.head.pk, term=term, before=Position(term, seq - 1), entries=[tail])
        before = digests(shard)
        assert before["a"][0] == held.digests["a"][0] + 1
        term += 1
        newcomer = wanted.of_term(term)

        def take(newcomer=newcomer):
            send_files(newcomer, chunk=3000)
            install_offer(newcomer.offer.shard, newcomer.offer)

        if lines is None:
            lines = lines_of(take, tmp_path / "lines", traced=TRACED)
            assert len(lines) > 150
            # A part of them each time: all take a minute.
            lines = random.Random(seed).sample(lines, k=min(SAMPLE, len(lines)))
            assert digests(shard) == newcomer.digests
            continue
        line = lines[place]
        # A pass that finds all of it done cannot be killed there: the next line then.
        place += 1
        if not killed_at(take, line, traced=TRACED):
            assert digests(shard) == newcomer.digests, line
            continue
        runtime.reset()
        assert verify_shard(shard.head).findings == [], line
        after = digests(shard)
        assert after in (before, newcomer.digests), line
        take()
        assert verify_shard(shard.head).findings == [], line
        assert digests(shard) == newcomer.digests, line
        aside = settings.NODE_FILES.set_aside / f"shard_0-{shard.head.uid[:8]}-{term - 1}-{seq}.slice"
        assert [item for _, items in slices_in(aside) for item in items] == [tail], line
