"""Indexes of segments: merges make them, answers stay the same, and a broken one is no damage."""

from __future__ import annotations

import pytest

from tests.vectors.full_syncs import digests, move_to_another_node, record, sync
from tests.vectors.merges import DIMENSION, before_commit, directory_of, exact_answer, intact, load, segments
from vectors import services
from vectors.engine import ids, index
from vectors.models import IndexRequest, Manifest, Namespace, ShardHead
from vectors.query_processor import SearchRequest
from vectors.recall import requests
from vectors.store import cleaning, recovery
from vectors.store.manifests import document_crc32
from vectors.store.merging import merge_due, merge_run
from vectors.store.verify import verify_shard

pytestmark = pytest.mark.usefixtures("small_indexes")


def test_a_large_segment_gets_an_index_and_exact_answers_stay_the_same(shard, batch):
    load(shard, batch, 700)
    before, digest = exact_answer(shard, batch), shard.digest("a")
    result = shard.merge()
    assert (result.merges, result.indexes) == (0, 1)
    (segment,) = segments(shard)
    assert segment.index.summary["rows"] == 700
    assert (directory_of(shard) / segment.uid / segment.index.name).stat().st_size == segment.index.stamp.size
    opened = recovery.open_shard(shard.head.pk)
    assert next(iter(opened.parts.values())).index is not None
    assert exact_answer(shard, batch) == before
    assert intact(shard) == digest
    assert not merge_due(ShardHead.objects.get())


def test_the_index_of_a_merged_segment_is_there_with_the_segment(shard, batch):
    load(shard, batch, 400, 400, 400)
    shard.merge()
    (segment,) = segments(shard)
    assert segment.index.summary["rows"] == segment.rows == 1200
    numbers = Manifest.objects.order_by("number").values_list("number", "origin")
    assert numbers.last() == (ShardHead.objects.get().manifest, "merge")


def test_rows_deleted_while_an_index_is_built_stay_deleted(shard, batch, monkeypatch):
    load(shard, batch, 700)
    keys = [ids.key_of(number) for number in range(50)]
    before_commit(monkeypatch, lambda: (shard.queries.delete(namespace="a", keys=keys), shard.checkpoint()))
    shard.merge()
    (segment,) = segments(shard)
    assert (segment.index is not None, segment.deleted_rows) == (True, 50)
    assert intact(shard)[0] == 650


def test_indexes_made_again_and_again_leave_few_files(shard, batch, monkeypatch):
    monkeypatch.setattr(cleaning, "_MOST_MANIFESTS_KEPT", 3)
    load(shard, batch, 700)
    for _ in range(6):
        requests.ask(Namespace.objects.get(), IndexRequest.Reason.ASKED)
        shard.merge()
    (segment,) = segments(shard)
    files = [path for path in (directory_of(shard) / segment.uid).iterdir() if "index." in path.name]
    assert len(files) == (3 if index.available() else 0)
    assert Manifest.objects.count() <= 3


def test_a_wish_that_takes_several_runs_is_heeded_once_for_each_segment(shard, batch):
    """Each run has its time, and begins with what the ones before it have not come to."""
    load(shard, batch, 1500, 330)
    shard.merge()
    before = {segment.uid: segment.index.name for segment in segments(shard)}
    requests.ask(Namespace.objects.get(), IndexRequest.Reason.ASKED)
    runs = [merge_run(shard.head.uid, owner="test", rest_s=0.0, stop=stop_after_one_step()) for _ in range(3)]
    assert [(run.indexes, run.is_done) for run in runs] == [(1, False), (1, False), (0, True)]
    assert all(segment.index.name != before[segment.uid] for segment in segments(shard))
    assert requests.pending(shard.head.pk) == {}
    requests.ask(Namespace.objects.get(), IndexRequest.Reason.MEASURED)
    assert shard.merge().indexes == 2


def stop_after_one_step():
    answers = iter([False])
    return lambda: next(answers, True)


@pytest.mark.parametrize("harm", ["missing", "short", "altered", "of another format"])
def test_a_broken_index_is_no_damage_is_told_and_made_anew(shard, batch, harm):
    load(shard, batch, 700)
    shard.merge()
    before, digest = exact_answer(shard, batch), shard.digest("a")
    (segment,) = segments(shard)
    path = directory_of(shard) / segment.uid / segment.index.name
    if harm == "missing":
        path.unlink()
    elif harm == "short":
        path.write_bytes(path.read_bytes()[:-1])
    elif harm == "altered":
        path.write_bytes(path.read_bytes()[:-100] + b"\xff" * 100)
    else:
        other = b"something else" * 1000
        path.write_bytes(other)
        relist(shard, segment, other)
    shard.restart()
    assert exact_answer(shard, batch) == before
    assert shard.digest("a") == digest
    head = ShardHead.objects.get()
    assert head.damage is None
    assert head.index_faults[segment.uid]["file"] == segment.index.name
    result = verify_shard(shard.head)
    assert result.findings == []
    assert any(segment.uid in note for note in result.notes)
    assert merge_due(head)
    assert shard.merge().indexes == 1
    (again,) = segments(shard)
    assert again.index.name != segment.index.name
    assert ShardHead.objects.get().index_faults == {}
    assert next(iter(recovery.open_shard(shard.head.pk).parts.values())).index is not None
    assert intact(shard) == digest


def relist(shard, segment, data):
    """Let the manifest list another index file, as if it had been written so."""
    import zlib

    row = Manifest.objects.get(number=ShardHead.objects.get().manifest)
    for namespace in row.document["namespaces"].values():
        for item in namespace["segments"]:
            if item["uid"] == segment.uid:
                item["index"][1:3] = [len(data), zlib.crc32(data)]
    row.crc32 = document_crc32(row.document)
    row.save()


def test_without_faiss_all_is_answered_exactly_and_the_index_stays(shard, batch, monkeypatch):
    load(shard, batch, 700)
    shard.merge()
    before = exact_answer(shard, batch)
    (segment,) = segments(shard)
    shard.restart()
    monkeypatch.setattr(index, "available", lambda: False)
    assert exact_answer(shard, batch) == before
    request = SearchRequest(query=batch(5, 1, dimension=DIMENSION, seed=99).values[0], top_k=20)
    found = shard.queries.find_similar(request, namespace="a").value
    assert [(hit.key, hit.score, hit.metadata) for hit in found] == before
    assert ShardHead.objects.get().index_faults == {}
    assert not merge_due(ShardHead.objects.get())
    load(shard, batch, 400, 400, start=700)
    shard.merge()
    (merged,) = segments(shard)
    assert (merged.rows, merged.index, merged.unindexed) == (1500, None, None)
    monkeypatch.undo()
    assert shard.merge().indexes == 1
    assert segment.index is not None


def test_a_segment_that_no_setting_serves_stays_exact_and_is_not_tried_again(shard, batch, monkeypatch):
    load(shard, batch, 700)
    tried = []
    monkeypatch.setattr(index, "build", lambda *args, **names: tried.append(names["recall_target"]))
    assert shard.merge().indexes == 1
    assert shard.merge().steps == 0
    assert tried == [0.99]
    assert segments(shard)[0].unindexed["recall_target"] == 0.99
    services.namespace_put(shard.head.pk, "a", recall_target=0.9)
    shard.merge()
    assert tried == [0.99, 0.9]


def test_a_build_that_fails_is_noted_and_leaves_the_segment_exact(shard, batch, monkeypatch):
    load(shard, batch, 700)

    def fail(*args, **names):
        raise RuntimeError("Error in faiss")

    monkeypatch.setattr(index, "build", fail)
    shard.merge()
    assert "Error in faiss" in segments(shard)[0].unindexed["reason"]
    assert not merge_due(ShardHead.objects.get())
    assert intact(shard)[0] == 700


def test_a_raised_target_and_a_wish_get_other_indexes(shard, batch):
    load(shard, batch, 700)
    shard.merge()
    (first,) = segments(shard)
    services.namespace_put(shard.head.pk, "a", recall_target=0.995)
    assert merge_due(ShardHead.objects.get())
    shard.merge()
    (second,) = segments(shard)
    assert first.index.name != second.index.name
    assert second.index.summary["recall_target"] == 0.995
    requests.ask(Namespace.objects.get(), IndexRequest.Reason.MEASURED)
    assert merge_due(ShardHead.objects.get())
    shard.merge()
    (third,) = segments(shard)
    assert third.index.name != second.index.name
    assert not merge_due(ShardHead.objects.get())
    assert requests.pending(shard.head.pk) == {}


def test_an_index_travels_with_a_full_sync_and_is_used_again(shard, batch, settings, tmp_path, monkeypatch):
    load(shard, batch, 700)
    requests.ask(Namespace.objects.get(), IndexRequest.Reason.ASKED)
    shard.merge()
    assert segments(shard)[0].wish
    sent = record(shard)
    assert any("/index." in path for path in sent.files)
    move_to_another_node(shard, settings, tmp_path / "replica", uid=sent.offer.shard)
    monkeypatch.setattr(index, "available", lambda: False)
    sync(sent)
    monkeypatch.undo()
    assert digests(shard) == sent.digests
    opened = recovery.open_shard(shard.head.pk)
    assert next(iter(opened.parts.values())).index is not None
    assert not merge_due(ShardHead.objects.get())
    assert segments(shard)[0].wish == 0, "wishes of this node are others than those of the sender"
    from vectors.store.staging import offer_take

    newer = sent.of_term(2)
    here = offer_take(newer.offer)
    assert here == {path: len(data) for path, data in sent.files.items()}
    assert verify_shard(shard.head).findings == []


def test_an_offer_with_an_index_of_a_strange_name_is_refused(shard, batch):
    from vectors.errors import InvalidInput
    from vectors.store.offer import SyncOffer

    load(shard, batch, 700)
    shard.merge()
    document = record(shard).offer.to_document()
    assert SyncOffer.from_document(document).rows == 700
    for name in ("../index.1.1.bin", "index.bin", "vectors.f32.npy", "index.1.1.bin/..", "deleted.1.1.npy"):
        for namespace in document["manifest"]["namespaces"].values():
            namespace["segments"][0]["index"][0] = name
        with pytest.raises(InvalidInput):
            SyncOffer.from_document(document)
    for said in ({}, {"recall_target": "0.99"}, {"recall_target": 7}, {"recall_target": 0.9, "x": "y" * 5000}, [1]):
        document = record(shard).offer.to_document()
        for namespace in document["manifest"]["namespaces"].values():
            namespace["segments"][0]["index"][3] = said
        with pytest.raises(InvalidInput):
            SyncOffer.from_document(document)
