"""Column files of segments: written with many rows, mapped by readers, and never needed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.vectors.full_syncs import move_to_another_node, record, sync
from vectors.engine import search
from vectors.engine.filters import parse_filter
from vectors.engine.filters.stored import write_columns
from vectors.engine.parts import FrozenPart
from vectors.store import column_files, recovery, segment_writing
from vectors.store.manifests import ManifestRecord, read_manifest, segment_directory
from vectors.store.merging import merge_run
from vectors.store.segment_files import COLUMNS_FILE, SegmentRecord
from vectors.store.verify import verify_shard

ROWS = 400
FILTER = {"n__range": [50, 149], "color": "red"}


@pytest.fixture(autouse=True)
def _many_rows_are_few(settings):
    settings.MLVDB_INDEX_MIN_ROWS = 300
    settings.MLVDB_SEGMENT_TIER = 2


@pytest.fixture
def filled(shard, batch):
    """A shard copy whose rows are in one segment."""
    shard.queries.upsert_many(batch(0, ROWS, color="red"), namespace="a")
    shard.checkpoint()
    return shard


def manifest(shard) -> ManifestRecord:
    shard.head.refresh_from_db()
    return read_manifest(shard.head.pk, shard.head.manifest)


def segments(shard) -> Sequence[SegmentRecord]:
    return [segment for record in manifest(shard).namespaces.values() for segment in record.segments]


def columns_path(shard):
    (uid,) = manifest(shard).namespaces
    (segment,) = segments(shard)
    return segment_directory(shard.head.uid, uid) / segment.uid / COLUMNS_FILE


def parts(shard) -> Sequence[FrozenPart]:
    opened = recovery.open_shard(shard.head.pk)
    assert not opened.damage
    return list(opened.parts.values())


def count(shard) -> int:
    shard.restart()
    return shard.queries.count(namespace="a", filter=parse_filter(FILTER)).value


def test_a_segment_of_many_rows_has_columns_and_one_of_few_has_none(shard, batch):
    shard.queries.upsert_many(batch(0, 299), namespace="few")
    shard.queries.upsert_many(batch(0, 300), namespace="many")
    shard.checkpoint()
    listed = {record.spec.name: record.segments for record in manifest(shard).namespaces.values()}
    assert [COLUMNS_FILE in segment.files for segment in listed["few"]] == [False]
    assert [COLUMNS_FILE in segment.files for segment in listed["many"]] == [True]
    opened = {part.rows: part.columns.stored for part in parts(shard)}
    assert opened[299] is None
    assert opened[300].paths == ["n"]


def test_a_filter_on_a_segment_with_columns_reads_no_metadata(filled, monkeypatch):
    opened = recovery.open_shard(filled.head.pk)
    (part,) = opened.parts.values()
    monkeypatch.setattr(part, "metadata", None)
    assert search.count(opened.engine.view("a"), parse_filter(FILTER)) == 100
    with pytest.raises(TypeError):
        part.metadata[0:1]


def test_columns_that_cannot_be_made_stop_no_checkpoint(shard, batch, monkeypatch, caplog):
    def fails(metadata):
        yield next(write_columns(metadata))
        raise ValueError("no JSON")

    monkeypatch.setattr(segment_writing, "write_columns", fails)
    shard.queries.upsert_many(batch(0, ROWS, color="red"), namespace="a")
    assert shard.checkpoint() is not None
    assert not columns_path(shard).exists()
    assert [COLUMNS_FILE in segment.files for segment in segments(shard)] == [False]
    assert "columns_not_written" in caplog.text
    assert count(shard) == 100


def test_merged_segments_get_columns_of_all_their_rows(shard, batch, settings):
    settings.MLVDB_MERGE_REST_S = 0
    for start in (0, 200):
        shard.queries.upsert_many(batch(start, 200, color="red"), namespace="a")
        shard.checkpoint()
    assert [COLUMNS_FILE in segment.files for segment in segments(shard)] == [False, False]
    merge_run(shard.head.uid, owner="test")
    assert [(segment.rows, COLUMNS_FILE in segment.files) for segment in segments(shard)] == [(400, True)]
    assert count(shard) == 100


@pytest.mark.parametrize("harm", ["missing", "short", "altered", "empty"])
def test_a_column_file_that_is_no_good_is_no_damage(filled, harm, batch, caplog):
    path = columns_path(filled)
    data = path.read_bytes()
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes({"short": data[:-1], "altered": data[:700] + b"?" + data[701:], "empty": b""}[harm])
    (part,) = parts(filled)
    assert part.columns.stored is None
    assert [record.getMessage() for record in caplog.records if "columns_unusable" in record.getMessage()] != []
    assert count(filled) == 100
    verified = verify_shard(filled.head)
    assert (verified.findings, [COLUMNS_FILE in note for note in verified.notes]) == ([], [True])
    # Writing goes on as well.
    filled.queries.upsert_many(batch(ROWS, 10, color="red"), namespace="a")
    assert filled.checkpoint() is not None


@pytest.mark.parametrize("other", [b"a file of another version", b"".join(write_columns([b"{}"] * (ROWS - 1)))])
def test_a_column_file_of_another_format_or_of_other_rows_is_not_used(filled, other, monkeypatch):
    columns_path(filled).write_bytes(other)
    monkeypatch.setattr(column_files, "check_file", lambda path, stamp, progress: None)
    (part,) = parts(filled)
    assert part.columns.stored is None
    assert count(filled) == 100


def test_a_merge_leaves_bad_columns_behind(filled, batch, settings):
    settings.MLVDB_MERGE_REST_S = 0
    columns_path(filled).write_bytes(b"")
    filled.queries.upsert_many(batch(ROWS, ROWS, color="red"), namespace="a")
    filled.checkpoint()
    merge_run(filled.head.uid, owner="test")
    (part,) = parts(filled)
    assert (part.rows, part.columns.stored.rows) == (2 * ROWS, 2 * ROWS)
    assert verify_shard(filled.head).notes == []


@pytest.mark.parametrize("good", [True, False])
def test_a_full_sync_brings_columns_that_are_good_and_needs_none(filled, settings, tmp_path, good):
    if not good:
        columns_path(filled).write_bytes(b"")
    recorded = record(filled)
    assert any(path.endswith(COLUMNS_FILE) for path in recorded.offer.files) is good
    move_to_another_node(filled, settings, tmp_path / "other", uid=recorded.offer.shard)
    sync(recorded)
    (part,) = parts(filled)
    assert (part.columns.stored is not None) is good
    assert count(filled) == 100
