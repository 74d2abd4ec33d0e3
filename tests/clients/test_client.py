"""The client against a real node: every method, every kind of id, and failures on the way."""

from __future__ import annotations

import threading
import uuid

import numpy as np
import pytest

from tests.clients.faults import FaultServer, pass_on
from vectors.client import BadRequest, Client, Conflict, NotFound, Retries
from vectors.client.session import Session

pytestmark = [pytest.mark.processes]

ODD_IDS = [
    0,
    -3,
    7,
    "7",
    "-3",
    ".",
    "..",
    "a/b",
    "a/../b",
    "//",
    "%2F",
    "a b",
    "a\nb",
    "ü?&#;",
    "batch",
    "vectors",
    "🙂",
]


def test_what_is_inserted_is_read_back(client: Client) -> None:
    row_id = client.insert([1.0, 2.5, -3.0], metadata={"color": "red", "n": np.int64(3), "nested": {"a": [1, None]}})

    record = client.get(row_id)

    assert uuid.UUID(str(row_id))
    np.testing.assert_array_equal(record.values, np.array([1.0, 2.5, -3.0], np.float32))
    assert record.values.dtype == np.float32
    assert record.metadata == {"color": "red", "n": 3, "nested": {"a": [1, None]}}


@pytest.mark.parametrize("row_id", ODD_IDS, ids=repr)
def test_every_id_can_be_written_read_patched_and_deleted(client: Client, row_id: int | str) -> None:
    assert client.insert([1.0], id=row_id) == row_id

    client.patch(row_id, {"a": 1})

    assert client.get(row_id).metadata == {"a": 1}
    assert client.search(id=row_id)[0].id == row_id
    assert [record.id for record in client.scroll()] == [row_id]
    assert client.delete([row_id]) == 1


def test_numpy_integers_and_uuids_are_ids(client: Client) -> None:
    known = uuid.uuid4()

    result = client.upsert(np.eye(3), ids=[np.int32(5), known, "x"])

    assert result.ids == [5, str(known), "x"]
    assert client.get(known).id == str(known)
    assert client.upsert(np.eye(3), ids=np.arange(3)).ids == [0, 1, 2]


@pytest.mark.parametrize("row_id", [True, 1.5, None, b"x"], ids=repr)
def test_what_is_no_id_is_refused_before_anything_is_sent(client: Client, row_id: object) -> None:
    with pytest.raises(TypeError):
        client.upsert([[1.0]], ids=[row_id])  # type: ignore[list-item]

    assert client.namespaces() == []


def test_an_upsert_is_split_into_batches_and_stays_in_order(client: Client) -> None:
    values = np.random.default_rng(1).normal(size=(2_345, 8))

    result = client.upsert(values, metadata=[{"row": row} for row in range(len(values))], batch_rows=500)

    assert len(set(result.ids)) == 2_345
    assert client.count() == 2_345
    fetched = client.fetch(result.ids)
    assert fetched.missing == []
    np.testing.assert_array_equal([record.values for record in fetched.records], values.astype(np.float32))
    assert [record.metadata["row"] for record in fetched.records] == list(range(2_345))


def test_a_batch_of_heavy_metadata_is_split_by_its_bytes(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vectors.client.client.BATCH_BYTES", 100_000)

    client.upsert(np.eye(20), ids=range(20), metadata=[{"text": "x" * 30_000}] * 20)

    assert client.count() == 20


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0, np.nan]], "row 0"),
        ([[1.0, 2.0], [1e39, 2.0]], "row 1"),
        ([1.0, 2.0], "shape"),
        ([[True]], "numbers"),
        ([["1"]], "numbers"),
    ],
    ids=["nan", "overflow", "shape", "bool", "text"],
)
def test_values_that_are_no_vectors_are_refused_before_anything_is_sent(client: Client, values, message) -> None:
    with pytest.raises(ValueError, match=message):
        client.upsert(values)

    assert client.namespaces() == []


def test_counts_that_differ_are_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="2 rows of values, but 1 ids"):
        client.upsert(np.eye(2), ids=[1])
    with pytest.raises(ValueError, match="2 rows of values, but 3 metadata"):
        client.upsert(np.eye(2), metadata=[{}] * 3)


def test_an_error_of_a_later_batch_says_how_many_rows_are_written(client: Client) -> None:
    metadata = [{}] * 3 + [{"too": "x" * 70_000}]

    with pytest.raises(BadRequest, match="70000") as caught:
        client.upsert(np.eye(4), metadata=metadata, batch_rows=2)

    assert caught.value.rows_written == 2
    assert client.count() == 2


def test_an_upsert_of_nothing_does_nothing(client: Client) -> None:
    assert client.upsert([]).ids == []
    assert client.upsert(np.zeros((0, 4))).ids == []
    assert client.namespaces() == []


def test_searches_find_the_nearest(client: Client) -> None:
    client.upsert([[1, 0], [0, 1], [3, 3]], ids=[1, 2, 3], metadata=[{"a": 1}, {"a": 2}, {"a": 3}])

    assert [hit.id for hit in client.search([1, 0.1])] == [1, 3, 2]
    assert [hit.id for hit in client.search([1, 0.1], metric="ip")] == [3, 1, 2]
    assert [hit.id for hit in client.search([1, 0.1], metric="l2", top_k=2)] == [1, 2]
    assert [hit.id for hit in client.search([1, 0.1], filter={"a__gt": 1}, offset=1)] == [2]
    assert [hit.id for hit in client.search([1, 0.1], score_threshold=0.9)] == [1]
    hit = client.search([1, 0], top_k=1, with_values=False, with_metadata=False)[0]
    assert (hit.id, hit.score, hit.values, hit.metadata) == (1, 1.0, None, None)
    assert client.search([1, 0]).complete


def test_a_batch_of_searches_answers_in_order(client: Client) -> None:
    client.upsert(np.eye(4), ids=range(4))

    answers = client.search_batch(np.eye(4), top_k=1)

    assert [[hit.id for hit in hits] for hits in answers] == [[0], [1], [2], [3]]
    assert client.search_batch(np.zeros((0, 4))) == []


def test_a_search_is_explained(client: Client) -> None:
    client.upsert(np.eye(4), ids=range(4))

    explanation = client.explain([1, 0, 0, 0], top_k=2)

    assert explanation.hits[0].id == 0
    assert explanation.complete
    assert explanation.shards[0]["shard"] == "shard_0"


def test_a_search_without_query_or_with_an_unknown_option_is_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="query or an id"):
        client.search()
    with pytest.raises(ValueError, match="query or an id"):
        client.search([1.0], id=1)
    with pytest.raises(TypeError, match="topk"):
        client.search([1.0], topk=3)  # type: ignore[call-arg]


def test_deletes_by_ids_and_by_filter(client: Client) -> None:
    client.upsert(np.eye(4), ids=range(4), metadata=[{"even": row % 2 == 0} for row in range(4)])

    assert client.delete([0, 99]) == 1
    assert client.delete(filter={"even": False}) == 2
    assert client.count() == 1
    assert client.delete([]) == 0
    with pytest.raises(ValueError, match="ids or filter"):
        client.delete()


def test_a_scroll_goes_through_every_page(client: Client) -> None:
    ids = [*range(-5, 5), *(f"row {number:02d}" for number in range(10)), "12"]
    client.upsert(np.ones((len(ids), 2)), ids=ids, metadata=[{"n": n} for n in range(len(ids))])

    scrolled = [record.id for record in client.scroll(page_rows=3)]

    assert scrolled == [*range(-5, 5), "12", *(f"row {number:02d}" for number in range(10))]
    assert next(client.scroll(after="12", page_rows=4)).id == "row 00"
    assert [record.metadata["n"] for record in client.scroll(filter={"n__lt": 2})] == [0, 1]


def test_namespaces_are_made_listed_and_dropped(client: Client) -> None:
    made = client.namespace_put("pictures", dimension=4, metric="l2", recall_target=0.9, picture="2x2")
    client.upsert(np.eye(4), namespace="pictures")

    assert (made["dimension"], made["metric"], made["picture"]) == (4, "l2", "2x2")
    assert client.namespaces() == ["pictures"]
    assert client.namespace_details()[0]["count"] == 4
    assert client.storage_info()["vectors_per_namespace"] == {"pictures": 4}
    with pytest.raises(Conflict):
        client.namespace_put("pictures", dimension=5)
    assert client.namespace_drop("pictures") == 4
    with pytest.raises(NotFound):
        client.namespace_drop("pictures")


def test_the_node_tells_of_itself(client: Client) -> None:
    assert client.health()["status"] == "healthy"
    assert client.is_ready()
    assert "# HELP" in client.metrics()
    client.log_level("warning")
    client.log_level("info")
    with pytest.raises(BadRequest):
        client.log_level("loud")


def test_errors_name_the_field(client: Client) -> None:
    client.insert([1.0, 2.0], id=1)

    with pytest.raises(BadRequest) as caught:
        client.insert([1.0], id=2)

    assert (caught.value.code, caught.value.field) == ("dimension_mismatch", "values")
    assert caught.value.request_id
    with pytest.raises(NotFound) as missing:
        client.get(99)
    assert missing.value.code == "vector_not_found"


def test_reads_after_writes_see_them_and_carry_their_position(client: Client) -> None:
    client.insert([1.0], id=1)

    assert set(client.min_seq) == {"shard_0"}
    assert client.count() == 1


def test_a_client_serves_several_threads(client: Client) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                row_id = client.insert([number, turn + 1.0])
                assert client.get(row_id).id == row_id
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert client.count() == 120


def test_answers_lost_on_the_way_leave_no_row_twice(
    client: Client, node_url: str, faults: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "sleep", staticmethod(lambda seconds: None))
    lossy = Client(faults.url, retries=Retries(attempts=4))
    through, lost = pass_on(node_url), pass_on(node_url, keep_answer=True)
    faults.then(lost, through, lost, lost, through, through)

    row_id = lossy.insert([1.0, 0.0])
    result = lossy.upsert([[0.0, 1.0], [1.0, 1.0]])

    assert sorted(str(record.id) for record in client.scroll()) == sorted(map(str, [row_id, *result.ids]))
    assert len(faults.requests) == 5
