"""Vectors by id over HTTP: insert, upsert, get, fetch, delete, patch, and every kind of id."""

from __future__ import annotations

import uuid
from urllib.parse import quote

import numpy as np
import pytest


def test_an_insert_answers_exactly_what_the_contract_says(api):
    response = api.post("/vectors", {"values": [1, 2, 3], "metadata": {"a": 1}, "id": 7})

    assert response.status_code == 201
    body = response.json()
    assert list(body) == ["status", "message", "id", "seq"]
    assert body["status"] == "success"
    assert body["message"] == "Vector inserted"
    assert body["id"] == 7
    assert list(body["seq"]) == ["shard_0"]
    assert isinstance(body["seq"]["shard_0"], str)


def test_an_insert_without_id_gets_a_uuid(api):
    generated = api.post("/vectors", {"values": [1, 2]}).json()["id"]

    assert uuid.UUID(generated).version == 4
    assert api.get(f"/vectors/{generated}").json()["values"] == [1.0, 2.0]


def test_null_id_and_null_metadata_are_as_if_left_out(api):
    body = api.post("/vectors", {"values": [1, 2], "id": None, "metadata": None}).json()

    assert api.get(f"/vectors/{body['id']}").json()["metadata"] == {}


def test_a_known_id_is_replaced_as_a_whole(api):
    api.post("/vectors", {"id": "a", "values": [1, 2], "metadata": {"x": 1}})
    api.post("/vectors", {"id": "a", "values": [3, 4]})

    assert api.get("/vectors/a").json() == {"id": "a", "values": [3.0, 4.0], "metadata": {}}
    assert api.post("/count").json() == {"count": 1}


def test_the_same_idempotency_key_makes_the_same_id(api):
    headers = {"Idempotency-Key": "order-66"}
    first = api.post("/vectors", {"values": [1, 2]}, headers=headers).json()["id"]
    again = api.post("/vectors", {"values": [1, 2]}, headers=headers).json()["id"]

    assert first == again
    assert api.post("/count").json() == {"count": 1}


def test_an_upsert_answers_the_ids_in_order(api):
    rows = [{"id": "a", "values": [1, 2]}, {"values": [3, 4]}, {"id": 5, "values": [5, 6], "metadata": {"k": "v"}}]

    body = api.put("/vectors/batch", {"vectors": rows}).json()

    assert list(body) == ["status", "message", "ids", "seq"]
    assert body["message"] == "3 vectors upserted"
    assert body["ids"][0] == "a"
    assert body["ids"][2] == 5
    uuid.UUID(body["ids"][1])


def test_of_a_repeated_id_in_a_batch_the_last_wins(api):
    rows = [{"id": 1, "values": [1, 1]}, {"id": 1, "values": [2, 2]}]

    assert api.put("/vectors/batch", {"vectors": rows}).json()["ids"] == [1, 1]
    assert api.get("/vectors/1").json()["values"] == [2.0, 2.0]
    assert api.post("/count").json() == {"count": 1}


def test_a_batch_with_one_bad_row_writes_none(api, error_of):
    rows = [{"id": number, "values": [1, 2]} for number in range(20)]
    rows[17]["values"] = [1, 2, 3]

    error = error_of(api.put("/vectors/batch", {"vectors": rows}))

    assert error["code"] == "dimension_mismatch"
    assert error["field"] == "vectors[17].values"
    assert api.post("/count").json() == {"count": 0}


def test_values_come_back_as_the_float32_that_was_stored(api):
    values = np.random.default_rng(5).standard_normal(100).astype(np.float32)

    api.post("/vectors", {"id": 1, "values": values})

    assert np.array_equal(np.array(api.get("/vectors/1").json()["values"], dtype=np.float32), values)


@pytest.mark.parametrize(
    "row_id",
    [
        "a/b/c",
        "/leading",
        "trailing/",
        "a//b",
        "ключ-é-漢字-🧦",
        "with space and ?&#%25=+;",
        "line\nbreak",
        "x" * 255,
        "batch/of",
        ".hidden",
        "a\\b",
        '"quoted"',
    ],
)
def test_any_text_is_an_id_in_a_path(api, row_id):
    api.post("/vectors", {"id": row_id, "values": [1, 2]})

    response = api.get(f"/vectors/{quote(row_id, safe='')}")

    assert response.status_code == 200
    assert response.json()["id"] == row_id
    assert api.patch(f"/vectors/{quote(row_id, safe='')}", {"metadata": {"a": 1}}).status_code == 200


def test_an_integer_and_its_digits_are_two_ids(api):
    api.put("/vectors/batch", {"vectors": [{"id": 7, "values": [1, 1]}, {"id": "7", "values": [2, 2]}]})

    assert api.get("/vectors/7").json() == {"id": 7, "values": [1.0, 1.0], "metadata": {}}
    assert api.get("/vectors/7?id_type=string").json() == {"id": "7", "values": [2.0, 2.0], "metadata": {}}
    assert api.patch("/vectors/7?id_type=string", {"metadata": {"s": 1}}).json()["id"] == "7"
    assert api.get("/vectors/7").json()["metadata"] == {}


def test_a_uuid_is_the_same_id_in_either_case(api):
    api.post("/vectors", {"id": "0B4CCB9C-7C3C-4A5B-9A54-0C1F7CB3C9F2", "values": [1, 2]})

    assert (
        api.get("/vectors/0b4ccb9c-7c3c-4a5b-9a54-0c1f7cb3c9f2").json()["id"] == "0b4ccb9c-7c3c-4a5b-9a54-0c1f7cb3c9f2"
    )


@pytest.mark.parametrize("row_id", [-(2**63), 2**63 - 1, 0, -1])
def test_integers_of_64_bits_are_ids(api, row_id):
    api.post("/vectors", {"id": row_id, "values": [1, 2]})

    assert api.get(f"/vectors/{row_id}").json()["id"] == row_id


@pytest.mark.parametrize("word", ["batch", "fetch", "delete"])
def test_words_of_routes_are_ids_for_get_and_patch(api, word):
    api.post("/vectors", {"id": word, "values": [1, 2]})

    assert api.patch(f"/vectors/{word}", {"metadata": {"a": 1}}).json()["id"] == word
    assert api.get(f"/vectors/{word}").json() == {"id": word, "values": [1.0, 2.0], "metadata": {"a": 1}}


def test_a_patch_merges_metadata_and_keeps_the_values(api):
    api.post("/vectors", {"id": "a", "values": [1, 2], "metadata": {"color": "red", "size": 4}})

    body = api.patch("/vectors/a", {"metadata": {"size": 5, "new": True}}).json()

    assert list(body) == ["status", "message", "id", "seq"]
    assert api.get("/vectors/a").json() == {
        "id": "a",
        "values": [1.0, 2.0],
        "metadata": {"color": "red", "size": 5, "new": True},
    }


def test_a_fetch_answers_rows_and_missing_in_the_order_asked(api):
    api.put("/vectors/batch", {"vectors": [{"id": "a", "values": [1, 2]}, {"id": 3, "values": [3, 4]}]})

    body = api.post("/vectors/fetch", {"ids": ["no", 3, "3", "a", 3]}).json()

    assert [row["id"] for row in body["vectors"]] == [3, "a", 3]
    assert body["missing"] == ["no", "3"]


@pytest.mark.parametrize(("method", "path"), [("DELETE", "/vectors"), ("POST", "/vectors/delete")])
def test_a_delete_takes_ids_or_a_filter(api, method, path):
    rows = [{"id": number, "values": [1, 2], "metadata": {"n": number}} for number in range(6)]
    api.put("/vectors/batch", {"vectors": rows})

    by_id = api.send(method, path, {"ids": [0, 1, 99]}).json()
    by_filter = api.send(method, path, {"filter": {"n__gte": 4}}).json()

    assert list(by_id) == ["status", "message", "deleted", "seq"]
    assert by_id["message"] == "2 vectors deleted"
    assert by_id["deleted"] == 2
    assert by_filter["deleted"] == 2
    assert [row["id"] for row in api.get("/namespaces/vectors").json()] == [2, 3]


def test_reads_account_for_the_shards(api):
    api.post("/vectors", {"id": 1, "values": [1, 2]})

    for response in (
        api.get("/vectors/1"),
        api.post("/vectors/fetch", {"ids": [1]}),
        api.post("/search", {"id": 1}),
        api.post("/search/batch", {"searches": [{"id": 1}]}),
        api.post("/count"),
        api.get("/namespaces/vectors"),
    ):
        assert response["X-MLVDB-Complete"] == "true"
        assert response["X-MLVDB-Shards"] == "1/1"
        assert "X-MLVDB-Failed" not in response
        assert "X-MLVDB-Stale" not in response


@pytest.mark.parametrize(
    "query",
    [
        "consistency=one",
        "consistency=quorum",
        "consistency=all",
        "read_preference=nearest",
        "timeout=1.5",
        "partial=false",
    ],
)
def test_consistency_parameters_are_taken_by_every_method(api, query):
    api.post("/vectors", {"id": 1, "values": [1, 2]})

    for response in (
        api.post(f"/vectors?{query}", {"id": 2, "values": [1, 2]}),
        api.get(f"/vectors/1?{query}"),
        api.post(f"/search?{query}", {"id": 1}),
        api.get(f"/namespaces?{query}"),
        api.get(f"/storage/info?{query}"),
        api.get(f"/namespaces/vectors?{query}"),
    ):
        assert response.status_code in (200, 201), response.content


def test_a_write_s_tokens_can_be_sent_back_as_query_and_as_header(api):
    seq = api.post("/vectors", {"id": 1, "values": [1, 2]}).json()["seq"]
    tokens = ",".join(f"{label}:{value}" for label, value in seq.items())

    assert api.get(f"/vectors/1?min_seq={tokens}").status_code == 200
    assert api.get("/vectors/1", headers={"X-MLVDB-Min-Seq": tokens}).status_code == 200


def test_a_query_parameter_wins_over_its_header(api, error_of):
    seq = api.post("/vectors", {"id": 1, "values": [1, 2]}).json()["seq"]["shard_0"]
    lost = {"X-MLVDB-Min-Seq": "shard_0:0.ffffffff.1.42"}

    assert error_of(api.get("/vectors/1", headers=lost))["code"] == "token_lost"
    assert api.get(f"/vectors/1?min_seq=shard_0:{seq}", headers=lost).status_code == 200


def test_a_header_of_the_wrong_form_is_refused_even_where_the_query_wins(api, error_of):
    api.post("/vectors", {"id": 1, "values": [1, 2]})
    bad = {"X-MLVDB-Consistency": "most"}

    assert error_of(api.get("/vectors/1", headers=bad))["field"] == "consistency"
    assert error_of(api.get("/vectors/1?consistency=all", headers=bad))["field"] == "consistency"


def test_namespaces_keep_their_rows_apart(api):
    api.post("/vectors?namespace=a", {"id": 1, "values": [1, 2]})
    api.post("/vectors?namespace=b", {"id": 1, "values": [1, 2, 3]})

    assert api.get("/vectors/1?namespace=a").json()["values"] == [1.0, 2.0]
    assert api.get("/vectors/1?namespace=b").json()["values"] == [1.0, 2.0, 3.0]
    assert api.get("/vectors/1").status_code == 404


def test_head_and_options_are_answered(api):
    api.post("/vectors", {"id": 1, "values": [1, 2]})

    head = api.send("HEAD", "/vectors/1")
    options = api.send("OPTIONS", "/vectors/1")

    assert head.status_code == 200
    assert head.content == b""
    assert options.status_code == 200
    assert options["Allow"] == "GET, PATCH, OPTIONS, HEAD"
