"""The database inside a program: in this configured Django, and in programs that have none."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Iterator

import numpy as np
import pytest
from django.conf import settings as site_settings

from vectors import runtime
from vectors.errors import DimensionMismatch, InvalidFilter, InvalidInput, TooLarge
from vectors.library import Index, QueryProcessor, StorageEngineInMemory, Vector, VectorDTO
from vectors.models import LogEntry, ShardHead
from vectors.store.manifests import segment_directory


@pytest.fixture
def storage(shard) -> Iterator[StorageEngineInMemory]:
    """A storage engine beside the node's own shard copy."""
    with StorageEngineInMemory() as storage:
        yield storage


@pytest.fixture
def processor(storage: StorageEngineInMemory) -> QueryProcessor:
    return QueryProcessor(storage_engine=storage, index=Index())


def test_an_inserted_vector_is_found_with_its_id_values_metadata_and_score(processor: QueryProcessor) -> None:
    vector = VectorDTO([3.0, 4.0], {"color": "red"})

    returned = processor.insert(vector)

    assert isinstance(returned, uuid.UUID)
    assert vector.id == returned
    (hit,) = processor.find_similar(VectorDTO([3.0, 4.0], {}), top_k=5)
    assert hit.keys() == {"id", "values", "metadata", "score"}
    assert (hit["id"], hit["metadata"], hit["score"]) == (returned, {"color": "red"}, 1.0)
    np.testing.assert_array_equal(hit["values"], np.array([3, 4], np.float32))


def test_many_vectors_are_upserted_and_the_nearest_come_first(processor: QueryProcessor) -> None:
    values = np.random.default_rng(3).normal(size=(300, 16))

    ids = processor.upsert_many([VectorDTO(row, {"n": n}) for n, row in enumerate(values)], namespace="n")

    assert len(set(ids)) == 300
    hits = processor.find_similar(values[7], top_k=3, namespace="n")
    assert hits[0]["id"] == ids[7]
    scores = [hit["score"] for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert processor.get_namespace_count("n") == 300
    assert processor.upsert_many([], "n") == []


def test_a_known_id_is_replaced(processor: QueryProcessor) -> None:
    processor.insert(VectorDTO([1, 0], {"v": 1}, id="a"))
    processor.insert(VectorDTO([0, 1], {"v": 2}, id="a"))
    processor.insert(Vector([1, 1], {"v": 3}, id=7))

    assert [(vector.id, vector.metadata) for vector in processor.get_namespace_vectors()] == [
        (7, {"v": 3}),
        ("a", {"v": 2}),
    ]


@pytest.mark.parametrize(("space", "expected"), [("cosine", [1, 3, 2]), ("ip", [3, 1, 2]), ("l2", [1, 2, 3])])
def test_the_index_chooses_the_metric(storage: StorageEngineInMemory, space: str, expected: list[int]) -> None:
    processor = QueryProcessor(storage, Index(space=space))
    processor.upsert_many([VectorDTO([1, 0], id=1), VectorDTO([0, 1], id=2), VectorDTO([3, 3], id=3)])

    assert [hit["id"] for hit in processor.find_similar([1, 0.1])] == expected
    assert [info.metric for info in storage.query_processor.namespace_details().value] == [space]
    assert [hit["id"] for hit in processor.find_similar([1, 0.1], metric="l2")] == [1, 2, 3]


def test_a_filter_narrows_a_search(processor: QueryProcessor) -> None:
    processor.upsert_many([VectorDTO([1, n], {"n": n}) for n in range(10)])

    hits = processor.find_similar([1, 0], top_k=3, filter={"n__gte": 5})

    assert [hit["metadata"]["n"] for hit in hits] == [5, 6, 7]
    with pytest.raises(InvalidFilter):
        processor.find_similar([1, 0], filter={"n__nope": 5})


def test_deletes_take_one_id_or_many(processor: QueryProcessor) -> None:
    one, two, three = processor.upsert_many([VectorDTO([n, 1]) for n in range(3)])

    assert processor.delete(one) == 1
    assert processor.delete([two, three, uuid.uuid4()]) == 2
    assert processor.delete(str(one)) == 0
    assert processor.delete([]) == 0
    assert processor.delete("x", "no such namespace") == 0
    assert processor.get_namespace_count() == 0


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ([1.0, float("nan")], "vectors[0].values"),
        ([1.0, 1e39], "vectors[0].values"),
        ([], "vectors[0].values"),
        ([[1.0]], "vectors[0].values"),
        (["1"], "vectors[0].values"),
        ([True], "vectors[0].values"),
        ([[1.0], [1.0, 2.0]], "vectors[0].values"),
        (None, "vectors[0].values"),
    ],
    ids=repr,
)
def test_values_that_are_no_vector_are_refused_and_change_nothing(processor, values, field) -> None:
    with pytest.raises(InvalidInput) as caught:
        processor.insert(VectorDTO(values))

    assert caught.value.field == field
    assert processor.list_namespaces() == []


def test_other_bad_input_is_refused_by_name(processor: QueryProcessor) -> None:
    processor.insert(VectorDTO([1.0, 2.0]))

    with pytest.raises(DimensionMismatch):
        processor.insert(VectorDTO([1.0]))
    with pytest.raises(DimensionMismatch):
        processor.upsert_many([VectorDTO([1.0, 2.0]), VectorDTO([1.0])])
    with pytest.raises(DimensionMismatch):
        processor.find_similar([1.0])
    with pytest.raises(InvalidInput, match="finite"):
        processor.insert(VectorDTO([1.0, 2.0], {"a": float("inf")}))
    with pytest.raises(InvalidInput, match="JSON"):
        processor.insert(VectorDTO([1.0, 2.0], {"a": object()}))
    with pytest.raises(TooLarge):
        processor.insert(VectorDTO([1.0, 2.0], {"a": "x" * 70_000}))
    with pytest.raises(InvalidInput):
        processor.insert(VectorDTO([1.0, 2.0], id=1.5))  # type: ignore[arg-type]
    for top_k in (0, 1001, True):
        with pytest.raises(InvalidInput, match="top_k"):
            processor.find_similar([1.0, 2.0], top_k=top_k)
    with pytest.raises(InvalidInput, match="metric"):
        processor.find_similar([1.0, 2.0], metric="hamming")
    with pytest.raises(InvalidInput, match="metric"):
        Index("hamming")
    assert processor.get_namespace_count() == 1


def test_a_storage_engine_answers_the_calls_of_its_name(storage: StorageEngineInMemory) -> None:
    first, second = Vector([1, 2], {"a": 1}), Vector([3, 4])

    assert storage.write(first, "n")
    assert storage.write_vectors([second], "m") == [True]
    assert storage.write_vectors([], "m") == []

    assert storage.read(first.id, "n") == first
    assert storage.read_vectors([second.id, first.id], "m") == [second, None]
    assert storage.exists(first.id)
    assert not storage.exists(uuid.uuid4())
    assert storage.namespace_map == {"n": [first], "m": [second]}
    assert storage.total_vectors == 2
    assert storage.storage_size > 0
    assert storage.get_storage_info()["vectors_per_namespace"] == {"m": 1, "n": 1}
    assert storage.delete(first.id, "n")
    assert not storage.delete(first.id, "n")
    assert storage.delete_namespace("m")
    assert not storage.delete_namespace("m")
    assert storage.clear_all()
    assert storage.list_namespaces == []


def test_engines_are_apart_from_each_other_and_from_the_node(storage: StorageEngineInMemory, shard) -> None:
    with StorageEngineInMemory() as other:
        QueryProcessor(storage).insert(VectorDTO([1.0]))

        assert other.list_namespaces == []
        assert shard.queries.list_namespaces().value == []
        assert ShardHead.objects.order_by("pk").first() == shard.head


def test_closing_an_engine_leaves_nothing(shard) -> None:
    storage = StorageEngineInMemory()
    with QueryProcessor(storage) as processor:
        processor.insert(VectorDTO([1.0]))
        storage._checkpoints.start(storage.shard_uid).join()
        files = segment_directory(storage.shard_uid, "")
        assert files.is_dir()

    assert not ShardHead.objects.filter(pk=storage.shard_id).exists()
    assert not LogEntry.objects.filter(shard_id=storage.shard_id).exists()
    assert not files.exists()
    storage.close()
    with pytest.raises(ValueError, match="closed"):
        processor.insert(VectorDTO([1.0]))


def test_several_threads_write_and_read(processor: QueryProcessor) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(25):
                row_id = processor.insert(VectorDTO([number, turn + 1.0]), namespace="shared")
                assert processor.find_similar([number, turn + 1.0], 1, "shared")
                assert processor.storage_engine.read(row_id, "shared") is not None
        except BaseException as error:
            failures.append(error)
        finally:
            from django.db import connection

            connection.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert processor.get_namespace_count("shared") == 100


def test_a_long_tail_is_checkpointed_here_and_no_broker_is_asked(processor, settings, wait_for, monkeypatch) -> None:
    settings.MLVDB_TAIL_SOFT_BYTES = 40_000
    settings.MLVDB_TAIL_HARD_BYTES = 2_000_000
    monkeypatch.setattr("mlvdb_site.celery.publish", lambda *args: pytest.fail("the broker was asked"))
    values = np.random.default_rng(5).normal(size=(3_000, 32))

    for start in range(0, 3_000, 300):
        processor.upsert_many([VectorDTO(row) for row in values[start : start + 300]])

    def checkpointed() -> bool:
        return ShardHead.objects.get(pk=processor.storage_engine.shard_id).manifest > 0

    wait_for(checkpointed)
    assert processor.get_namespace_count() == 3_000
    runtime.reset()
    assert processor.get_namespace_count() == 3_000


def _run_program(text: str, **environ: str) -> subprocess.CompletedProcess[str]:
    program = textwrap.dedent(text)
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=site_settings.BASE_DIR,
        env={"PATH": "/usr/bin:/bin", **environ},
        timeout=60,
        check=False,
    )


def test_a_program_without_django_gets_a_private_directory_that_is_gone_afterwards(tmp_path) -> None:
    done = _run_program(
        """
        import logging, os, threading
        logging.basicConfig(level=logging.ERROR, format="mine %(message)s")
        handlers = list(logging.getLogger().handlers)
        from vectors.library import Index, QueryProcessor, StorageEngineInMemory, VectorDTO
        from vectors.library.environment import private_directory

        one, two = StorageEngineInMemory(), StorageEngineInMemory()
        processor = QueryProcessor(storage_engine=one, index=Index(space="cosine"))
        other = QueryProcessor(storage_engine=two)
        ids = processor.upsert_many([VectorDTO([1.0, n], {"n": n}) for n in range(50)], namespace="n")
        thread = threading.Thread(target=lambda: other.insert(VectorDTO([1.0])))
        thread.start()
        thread.join()
        assert processor.find_similar([1.0, 0.0], top_k=1, namespace="n")[0]["metadata"] == {"n": 0}
        assert processor.list_namespaces() == ["n"] and other.list_namespaces() == ["default"]
        assert logging.getLogger().handlers == handlers, "the program's logging was changed"
        assert os.environ.get("MLVDB_DATA_DIR") == "/nonexistent", "the program's environment was changed"
        assert "DJANGO_SETTINGS_MODULE" not in os.environ
        print(private_directory())
        """,
        TMPDIR=str(tmp_path),
        MLVDB_DATA_DIR="/nonexistent",
        MLVDB_BROKER_URL="redis://127.0.0.1:1/0",
        DATABASE_URL="postgres://nobody@127.0.0.1:1/none",
    )

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.strip().startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_what_is_noticed_about_other_nodes_is_logged_as_the_program_asks_and_by_itself_only_errors_are() -> None:
    program = """
        import logging, sys
        from vectors.library.environment import ensure_django
        ensure_django()
        for _ in range(2):
            for name in ("cluster.health.samples", "vectors.store.log"):
                logging.getLogger(name).warning("warning of %s", name)
                logging.getLogger(name).error("error of %s", name)
            logging.basicConfig(format="mine %(message)s", stream=sys.stdout)
        """

    done = _run_program(program)

    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "error of cluster.health.samples",
        "warning of vectors.store.log",
        "error of vectors.store.log",
    ]
    assert done.stdout.splitlines() == [
        f"mine {level} of {name}"
        for name in ("cluster.health.samples", "vectors.store.log")
        for level in ("warning", "error")
    ]


def test_a_child_that_is_forked_does_not_remove_the_directory(tmp_path) -> None:
    done = _run_program(
        """
        import os, sys
        from vectors.library import QueryProcessor, StorageEngineInMemory, VectorDTO

        processor = QueryProcessor(StorageEngineInMemory())
        processor.insert(VectorDTO([1.0]))
        child = os.fork()
        if child == 0:
            sys.exit(0)
        os.waitpid(child, 0)
        assert processor.get_namespace_count() == 1
        processor.insert(VectorDTO([2.0]))
        assert processor.get_namespace_count() == 2
        """,
        TMPDIR=str(tmp_path),
    )

    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_django_without_the_app_is_told_so() -> None:
    done = _run_program(
        """
        from django.conf import settings
        settings.configure(INSTALLED_APPS=[])
        from vectors.library import StorageEngineInMemory
        StorageEngineInMemory()
        """
    )

    assert done.returncode == 1
    assert "ImproperlyConfigured" in done.stderr
    assert "vectors.apps.VectorsConfig" in done.stderr


def test_the_start_in_a_program_takes_no_long_time() -> None:
    began = time.monotonic()

    done = _run_program("from vectors.library import StorageEngineInMemory; StorageEngineInMemory().close()")

    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 20
