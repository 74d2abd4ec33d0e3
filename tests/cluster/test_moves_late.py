"""Requests of a move that come late: whatever a shard was asked once may reach it again, and must change nothing.

A node that was stopped for a while has requests in its sockets that nobody waits for any more; a process that has lost
the lease sends one more. The move has gone on meanwhile, back, or to its end, and other moves have followed it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster.models import MoveStep, Shard
from cluster.moves.control import move_cancel
from cluster.moves.ends import LocalEnd
from cluster.query_processor import ClusterQueryProcessor
from cluster.states import MovePhase
from tests.cluster.moving import (
    ROWS,
    between_pages,
    closed_slots,
    contents,
    delete,
    owned,
    phase,
    redistribute,
    run,
    settled,
    shards_with_rows,
    write,
)
from vectors.errors import MLVectorDBError
from vectors.models import MoveCursor, Pin, ShardHead
from vectors.store import terms

pytestmark = pytest.mark.django_db(transaction=True)

_AGAIN_AT_ONCE = 3


class Late:
    """What shards were asked so far. After each further request some of it comes again, drawn by a seed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
        self._random = random.Random(seed)
        self._asked: list[Callable[[], Any]] = []
        self._is_late = False
        self.refused = 0
        for name in ("take", "clean", "set_slots", "forget"):
            monkeypatch.setattr(LocalEnd, name, self._kept(name, getattr(LocalEnd, name)))

    def _kept(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def asked(end: LocalEnd, *args: Any, **kwargs: Any) -> Any:
            answer = real(end, *args, **kwargs)
            if not self._is_late:
                # The page that begins a copy is empty, and is answered before the next is sent: of the two one at most
                # comes late.
                if kwargs.get("before") != "":
                    self._asked.append(lambda: real(end, *args, **kwargs))
                self.come(_AGAIN_AT_ONCE)
            return answer

        return asked

    def come(self, count: int) -> None:
        """Have some requests come again; those that are refused are."""
        self._is_late = True
        for request in self._random.choices(self._asked, k=count) if self._asked else ():
            try:
                request()
            except MLVectorDBError:
                self.refused += 1
        self._is_late = False

    def come_all(self) -> None:
        """Have everything come again, in any order."""
        self._is_late = True
        for request in self._random.sample(self._asked, k=len(self._asked)):
            try:
                request()
            except MLVectorDBError:
                self.refused += 1
        self._is_late = False


@pytest.fixture
def processor(head: ShardHead, monkeypatch: pytest.MonkeyPatch, settings) -> Iterator[ClusterQueryProcessor]:
    """Two shards of this node with rows."""
    settings.MLVDB_MOVE_SLICE_BYTES = 2048
    with shards_with_rows(monkeypatch) as processor:
        yield processor


def without_remains() -> None:
    """Let go of what late requests may leave, and no client sees: a cursor, a pin."""
    MoveCursor.objects.all().delete()
    Pin.objects.all().delete()


@pytest.mark.parametrize("seed", range(6))
def test_what_comes_late_changes_nothing(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """There, back and there again; the first copy begins anew and the first switch fails, beside writes and deletes."""
    late = Late(monkeypatch, seed)
    expected = contents(processor)
    head = ShardHead.objects.get(label="shard_0")
    fails = 1
    real = LocalEnd.wait_quorum

    def wait_quorum(self: Any, *args: Any, **kwargs: Any) -> bool:
        nonlocal fails
        if fails and closed_slots():
            fails -= 1
            return False
        return real(self, *args, **kwargs)

    def disturb(page: int) -> None:
        if page == 3:
            terms.term_start(head.pk, 2)
        if closed_slots() or page % 2:
            return
        written, deleted = range(page % 19, ROWS, 19), range(page % 23, ROWS, 23)
        write(processor, written, value=float(page))
        delete(processor, deleted)
        expected.update(dict.fromkeys(written, float(page)))
        for number in deleted:
            expected.pop(number, None)
        late.come(1)
        assert contents(processor) == expected

    monkeypatch.setattr(LocalEnd, "wait_quorum", wait_quorum)
    between_pages(monkeypatch, disturb)
    asked = [redistribute("shard_0", "shard_1")]
    run()
    assert phase(asked[0]) == MovePhase.FOLLOWING
    run()
    for source, target in (("shard_1", "shard_0"), ("shard_0", "shard_1")):
        asked.append(redistribute(source, target))
        run()
        assert contents(processor) == expected

    late.come_all()

    assert [phase(move) for move in asked] == [MovePhase.DONE] * 3
    assert MoveStep.objects.get(move=asked[0]).state["round"] == 2
    assert contents(processor) == expected
    assert late.refused > 20
    without_remains()
    settled()
    write(processor, range(ROWS), value=9.0)
    assert contents(processor) == dict.fromkeys(range(ROWS), 9.0)


@pytest.mark.parametrize("seed", range(3))
def test_what_comes_late_after_a_cancelled_move_changes_nothing(
    processor: ClusterQueryProcessor, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    late = Late(monkeypatch, seed)
    before, slots = contents(processor), owned("shard_0")
    first = redistribute()
    between_pages(monkeypatch, lambda page: page == 1 and move_cancel(first.pk, actor="test"))
    run()
    assert (phase(first), owned("shard_0")) == (MovePhase.CANCELLED, slots)
    late.come_all()
    without_remains()
    settled()
    delete(processor, range(0, ROWS, 2))
    expected = {number: value for number, value in before.items() if number % 2}

    redistribute()
    run()
    late.come_all()

    assert contents(processor) == expected
    without_remains()
    settled()
    assert not Shard.objects.filter(has_foreign=True).exists()
