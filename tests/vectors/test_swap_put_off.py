"""A swap waits where the next checkpoint is near: it would replay a long tail, and soon again."""

from __future__ import annotations

import pytest

from vectors import runtime
from vectors.store import log

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_long_tail_puts_a_swap_off_but_not_for_long(shard, settings, monkeypatch):
    settings.MLVDB_TAIL_SOFT_BYTES = 1000
    head = log.read_head(shard.head.pk)
    assert head is not None
    short, long = head._replace(tail_bytes=1000), head._replace(tail_bytes=2000)
    clock = [100.0]
    monkeypatch.setattr(runtime.time, "monotonic", lambda: clock[0])
    copy = runtime.runtime().shard(shard.head.pk)

    assert not copy._another_is_near(short)
    assert copy._another_is_near(long)
    clock[0] += 4
    assert copy._another_is_near(long)
    clock[0] += 2
    assert not copy._another_is_near(long)
    assert copy._another_is_near(long), "the next manifest is waited for anew"
    assert not copy._another_is_near(short)
