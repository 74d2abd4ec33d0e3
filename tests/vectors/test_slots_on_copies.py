"""Which slots may be written, on copies of a shard: it follows the log, cuts and full syncs, and outlives entries."""

from __future__ import annotations

import numpy as np
import pytest

from tests.vectors.full_syncs import digests, move_to_another_node, record, sync
from tests.vectors.paper_logs import PaperLog, new_copy
from tests.vectors.test_receive import A, B, assert_same, give
from vectors.engine import ids
from vectors.engine.operations import SetSlots
from vectors.engine.slots import ALL_SLOTS, NO_SLOTS, SlotSet
from vectors.errors import InvalidInput, SlotsClosed
from vectors.models import LogEntry, Manifest, MoveCursor, Namespace, ShardHead, ShardSlots
from vectors.query_processor import LocalQueryProcessor, VectorBatch
from vectors.query_processor.moving import MovingCopy
from vectors.store import log, pins, recovery, slot_rows, terms
from vectors.store.checkpoint import checkpoint_run
from vectors.store.cut_back import cut_back
from vectors.store.log import Position
from vectors.store.offer import SyncOffer
from vectors.store.receive import receive
from vectors.store.slot_rows import slots_at
from vectors.store.slots import slots_now, slots_set
from vectors.store.verify import verify_shard

ONE, TWO = ids.key_of(1), ids.key_of(2)
OF_ONE = SlotSet.of([ids.slot_of(ONE)])
OF_TWO = SlotSet.of([ids.slot_of(TWO)])


@pytest.fixture
def paper() -> PaperLog:
    """A log whose slots are divided, and then fewer: at seqs 3 and 5, of epochs 4 and 9."""
    made = PaperLog()
    made.put(A, "a")
    made.upsert(A, 0, 5)
    made.add(SetSlots(4, (OF_ONE | OF_TWO).packed))
    made.upsert(A, 1)
    made.add(SetSlots(9, OF_ONE.packed))
    made.upsert(A, 1)
    return made


def promote(head: ShardHead, term: int) -> None:
    terms.term_start(head.pk, term)


def put(head: ShardHead, key: bytes, *, dimension: int = 3) -> None:
    batch = VectorBatch([key], np.ones((1, dimension), dtype=np.float32), [b"{}"])
    LocalQueryProcessor(head.pk).upsert_many(batch, namespace="a")


def slots_seq(head: ShardHead) -> int:
    return ShardHead.objects.get(pk=head.pk).slots_seq


def known(head: ShardHead) -> list[tuple[int, int, bytes]]:
    rows = ShardSlots.objects.filter(shard=head).order_by("seq")
    return [(row.seq, row.epoch, bytes(row.writable)) for row in rows]


@pytest.mark.parametrize("through", range(7))
def test_a_copy_knows_what_its_log_says(shard, paper, through):
    head = new_copy()
    give(head, paper, 0, through)
    expected = [(3, 4, (OF_ONE | OF_TWO).packed), (5, 9, OF_ONE.packed)]
    assert known(head) == [change for change in expected if change[0] <= through]
    assert slots_seq(head) == max((seq for seq, *_ in known(head)), default=0)
    assert recovery.open_shard(head.pk).engine.slots_epoch == (9 if through >= 5 else 4 if through >= 3 else 0)
    assert verify_shard(head).findings == []


def test_entries_that_come_again_are_noted_once(shard, paper):
    head = new_copy()
    give(head, paper, 0, 5)
    give(head, paper, 2)
    give(head, paper, 0)
    assert [seq for seq, *_ in known(head)] == [3, 5]
    assert_same(head, paper)


def test_a_copy_that_becomes_primary_refuses_what_its_predecessor_refused(shard, paper):
    head = new_copy()
    give(head, paper, 0)
    promote(head, 2)
    with pytest.raises(SlotsClosed) as caught:
        put(head, TWO)
    assert caught.value.detail["slots"] == [ids.slot_of(TWO)]
    put(head, ONE)
    assert verify_shard(head).findings == []


@pytest.mark.parametrize(("to", "seq", "open_to"), [(6, 5, [ONE]), (4, 3, [ONE, TWO]), (3, 3, [ONE, TWO])])
def test_what_is_cut_back_no_longer_closes_a_slot(shard, paper, to, seq, open_to):
    head = new_copy()
    give(head, paper, 0)
    cut_back(head.pk, to=paper.at(to), term=2)
    assert slots_seq(head) == seq
    assert known(head)[-1][0] == seq
    promote(head, 3)
    for key in (ONE, TWO):
        if key in open_to:
            put(head, key)
        else:
            with pytest.raises(SlotsClosed):
                put(head, key)
    with pytest.raises(SlotsClosed):
        put(head, ids.key_of(3))
    assert verify_shard(head).findings == []


def test_a_log_that_is_cut_to_before_the_first_has_no_gate(shard, paper):
    head = new_copy()
    give(head, paper, 0)
    cut_back(head.pk, to=paper.at(2), term=2)
    assert (slots_seq(head), known(head)) == (0, [])
    promote(head, 3)
    put(head, ids.key_of(3))
    assert slots_now(head.pk) is None


def test_another_history_after_a_cut_says_something_else(shard, paper):
    head = new_copy()
    give(head, paper, 0)
    promote(head, 2)
    put(head, ONE)
    other = paper.fork(4, 5)
    other.add(SetSlots(12, OF_TWO.packed))
    terms.primary_release(head.pk, 5)
    cut_back(head.pk, to=other.at(4), term=5)
    give(head, other, 4)
    promote(head, 6)
    put(head, TWO)
    with pytest.raises(SlotsClosed):
        put(head, ONE)
    assert verify_shard(head).findings == []


@pytest.mark.parametrize(("most", "epochs"), [(1, [7, 8]), (3, [5, 6, 7, 8]), (100, [1, 2, 3, 4, 5, 6, 7, 8])])
def test_what_held_before_all_that_is_left_of_a_log_is_forgotten(shard, monkeypatch, most, epochs):
    monkeypatch.setattr(slot_rows, "_KEPT", most)
    head = shard.head
    for epoch in range(1, 9):
        slots_set(head.pk, epoch=epoch, writable=OF_ONE if epoch % 2 else OF_ONE | OF_TWO)
        put(head, ONE)
        checkpoint_run(head.uid, owner="test")
        assert verify_shard(head).findings == []
    assert [epoch for _, epoch, _ in known(head)] == epochs
    assert recovery.open_shard(head.pk).engine.slots_epoch == 8
    for manifest in Manifest.objects.filter(shard=head):
        assert slots_at(head.pk, manifest.seq) is not None


def test_a_pinned_log_keeps_what_its_entries_say_of_slots(shard, monkeypatch):
    monkeypatch.setattr(slot_rows, "_KEPT", 1)
    head = shard.head
    slots_set(head.pk, epoch=1, writable=OF_ONE)
    pins.pin_set(head.pk, "reader", log.read_head(head.pk).last_seq)
    for epoch in range(2, 6):
        slots_set(head.pk, epoch=epoch, writable=OF_ONE)
        checkpoint_run(head.uid, owner="test")
    assert [epoch for _, epoch, _ in known(head)] == [1, 2, 3, 4, 5]
    assert verify_shard(head).findings == []


def test_a_copy_keeps_its_slots_when_a_checkpoint_prunes_the_entries(shard, paper):
    head = new_copy()
    give(head, paper, 0)
    for _ in range(3):
        checkpoint_run(head.uid, owner="test")
    assert not LogEntry.objects.filter(shard=head, seq__lte=5).exists()
    assert recovery.open_shard(head.pk).engine.slots_epoch == 9
    promote(head, 2)
    with pytest.raises(SlotsClosed):
        put(head, TWO)
    assert verify_shard(head).findings == []


@pytest.fixture
def sender(shard, batch):
    """A primary with slots that were changed before its checkpoint, twice, and after it."""
    shard.queries.upsert_many(batch(0, 20), namespace="a")
    slots_set(shard.head.pk, epoch=3, writable=ALL_SLOTS - OF_ONE)
    slots_set(shard.head.pk, epoch=5, writable=OF_ONE | OF_TWO)
    shard.checkpoint()
    slots_set(shard.head.pk, epoch=8, writable=OF_ONE)
    return record(shard)


def follow(head: ShardHead, recorded) -> None:
    offer = recorded.offer
    receive(head.pk, term=offer.head.term, before=Position(offer.term, offer.seq), entries=recorded.entries)


def test_a_full_sync_brings_the_slots_of_its_manifest_and_the_log_those_after_it(shard, sender, settings, tmp_path):
    move_to_another_node(shard, settings, tmp_path / "replica", uid=sender.offer.shard)
    sync(sender)
    assert [(epoch, writable) for _, epoch, writable in known(shard.head)] == [(5, (OF_ONE | OF_TWO).packed)]
    assert recovery.open_shard(shard.head.pk).engine.slots_epoch == 5
    assert verify_shard(shard.head).findings == []
    follow(shard.head, sender)
    assert slots_now(shard.head.pk)[1:] == (8, OF_ONE)
    assert digests(shard) == sender.digests
    promote(shard.head, 2)
    put(shard.head, ONE, dimension=4)
    with pytest.raises(SlotsClosed):
        put(shard.head, TWO, dimension=4)
    assert verify_shard(shard.head).findings == []


def test_a_full_sync_keeps_the_slots_of_entries_that_it_keeps_and_no_others(shard, sender, settings, tmp_path):
    move_to_another_node(shard, settings, tmp_path / "replica", uid=sender.offer.shard)
    sync(sender)
    follow(shard.head, sender)
    before = known(shard.head)
    MoveCursor.objects.create(shard=shard.head, move="m", cursor="x")
    sync(sender.with_token(9))
    assert known(shard.head) == before
    assert slots_seq(shard.head) == before[-1][0] == log.read_head(shard.head.pk).last_seq
    assert not MoveCursor.objects.exists()
    # Of another history is what the sender of a later term does not have.
    sync(sender.of_term(3, token=10, since=sender.offer.seq))
    assert [epoch for _, epoch, _ in known(shard.head)] == [5]
    assert slots_seq(shard.head) == known(shard.head)[-1][0]


def test_a_full_sync_without_slots_opens_what_was_closed_by_another_history(shard, batch, settings, tmp_path):
    shard.queries.upsert_many(batch(0, 5), namespace="a")
    shard.checkpoint()
    recorded = record(shard).of_term(4)
    assert recorded.offer.slots is None
    move_to_another_node(shard, settings, tmp_path / "replica", uid=recorded.offer.shard)
    other = PaperLog()
    other.put(A, "a")
    other.add(SetSlots(3, NO_SLOTS.packed))
    give(shard.head, other, 0)
    sync(recorded)
    assert (slots_seq(shard.head), known(shard.head)) == (0, [])


def test_an_offer_with_slots_is_refused_by_nodes_that_do_not_know_of_them(sender, shard, batch):
    document = sender.offer.to_document()
    assert document["format"] == 2
    assert SyncOffer.from_document(document) == sender.offer
    for changed in (
        {"format": 1},
        {"slots": None},
        {"slots": [0, 5, NO_SLOTS.packed.hex()]},
        {"slots": [sender.offer.seq + 1, 5, NO_SLOTS.packed.hex()]},
        {"slots": [1, -5, NO_SLOTS.packed.hex()]},
        {"slots": [1, 5, "00"]},
        {"slots": [1, 5]},
    ):
        with pytest.raises(InvalidInput):
            SyncOffer.from_document({**document, **changed})


def test_an_offer_without_slots_is_as_it_always_was(shard, batch):
    shard.queries.upsert_many(batch(0, 5), namespace="a")
    shard.checkpoint()
    document = record(shard).offer.to_document()
    assert document["format"] == 1
    del document["slots"]
    assert SyncOffer.from_document(document).slots is None


@pytest.mark.parametrize(
    "harm",
    [
        lambda head: ShardSlots.objects.filter(shard=head, seq=3).delete(),
        lambda head: ShardSlots.objects.filter(shard=head, seq=5).delete(),
        lambda head: ShardSlots.objects.filter(shard=head, seq=5).update(writable=ALL_SLOTS.packed),
        lambda head: ShardSlots.objects.filter(shard=head, seq=5).update(epoch=7),
        lambda head: ShardSlots.objects.create(shard=head, seq=4, epoch=5, writable=NO_SLOTS.packed),
        lambda head: ShardHead.objects.filter(pk=head.pk).update(slots_seq=0),
    ],
)
def test_verifying_finds_slots_that_are_not_those_of_the_log(shard, paper, harm):
    head = new_copy()
    give(head, paper, 0)
    harm(head)
    assert verify_shard(head).findings


def test_a_uid_that_ended_before_it_was_known_stays_ended_on_a_copy_that_becomes_primary(shard, paper):
    paper.drop(B)
    head = new_copy()
    give(head, paper, 0)
    promote(head, 2)
    copy = MovingCopy(head.pk)
    copy.set_slots(10, NO_SLOTS)
    spec = recovery.open_shard(head.pk).engine.spec("a")
    copy.namespace_adopt(type(spec)(B, "b", 3, "ip", 0.9))
    assert recovery.open_shard(head.pk).engine.names() == ["a"]
    assert verify_shard(head).findings == []


def test_an_end_that_is_cut_back_leaves_no_trace(shard, paper):
    paper.drop(B)
    head = new_copy()
    give(head, paper, 0)
    assert Namespace.objects.get(shard=head, uid=B).dropped_at is not None
    cut_back(head.pk, to=paper.at(6), term=2)
    assert not Namespace.objects.filter(shard=head, uid=B).exists()
    other = paper.fork(6, 3)
    other.put(B, "b")
    give(head, other, 6)
    assert_same(head, other)
