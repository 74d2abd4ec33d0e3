"""Namespaces and their vectors page by page, and what the node holds."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest

UUID = "0b4ccb9c-7c3c-4a5b-9a54-0c1f7cb3c9f2"


def test_a_namespace_is_made_by_its_first_vector(api):
    assert api.get("/namespaces").json() == {"namespaces": []}

    api.post("/vectors?namespace=b", {"values": [1, 2]})
    api.post("/vectors?namespace=a", {"values": [1, 2, 3]})

    assert api.get("/namespaces").json() == {"namespaces": ["a", "b"]}


def test_detail_adds_what_is_known_of_each(api):
    api.put("/namespaces/pictures", {"dimension": 4, "metric": "l2", "recall_target": 0.95, "picture": "2x2"})
    api.post("/vectors?namespace=pictures", {"id": 1, "values": [1, 2, 3, 4]})

    (namespace,) = api.get("/namespaces?detail=1").json()["namespaces"]

    assert namespace["name"] == "pictures"
    assert namespace["dimension"] == 4
    assert namespace["metric"] == "l2"
    assert namespace["recall_target"] == 0.95
    assert namespace["picture"] == "2x2"
    assert namespace["count"] == 1
    assert namespace["segments"] == 0
    assert namespace["tail_rows"] == 1
    assert namespace["measured_recall"] is None
    assert namespace["size_bytes"] > 0


def test_a_put_makes_a_namespace_and_a_second_changes_it(api):
    made = api.put("/namespaces/digits", {"dimension": 64, "metric": "ip"})
    changed = api.put("/namespaces/digits", {"recall_target": 0.9})
    same = api.put("/namespaces/digits", {"dimension": 64, "metric": "ip"})

    assert made.status_code == changed.status_code == same.status_code == 200
    assert made.json()["status"] == "success"
    assert made.json()["namespace"]["recall_target"] == 0.99
    assert changed.json()["namespace"] == {**made.json()["namespace"], "recall_target": 0.9}
    assert api.get("/namespaces").json() == {"namespaces": ["digits"]}


def test_a_namespace_made_without_metric_is_cosine(api):
    assert api.put("/namespaces/a", {"dimension": 2}).json()["namespace"]["metric"] == "cosine"


def test_a_dropped_namespace_is_gone_and_its_name_free(api):
    api.put("/vectors/batch?namespace=a", {"vectors": [{"values": [1, 2]}, {"values": [3, 4]}]})

    body = api.delete("/namespaces/a").json()

    assert body["status"] == "success"
    assert body["deleted"] == 2
    assert api.get("/namespaces").json() == {"namespaces": []}
    assert api.delete("/namespaces/a").status_code == 404
    assert api.post("/vectors?namespace=a", {"values": [1, 2, 3]}).status_code == 201


def test_storage_info_has_exactly_the_keys_of_the_contract(api):
    api.post("/vectors?namespace=a", {"values": [1, 2]})
    api.put("/namespaces/b", {"dimension": 3})

    body = api.get("/storage/info").json()

    assert list(body) == [
        "storage_type",
        "total_vectors",
        "storage_size_bytes",
        "namespaces",
        "vectors_per_namespace",
        "namespace_count",
    ]
    assert body["storage_type"] == "in-memory"
    assert body["total_vectors"] == 1
    assert body["storage_size_bytes"] > 0
    assert body["namespaces"] == ["a", "b"]
    assert body["vectors_per_namespace"] == {"a": 1, "b": 0}
    assert body["namespace_count"] == 2


@pytest.fixture
def mixed_ids(api):
    """Ids of all three kinds, strings of digits among them."""
    ids = ["10", 3, UUID, "b", -4, "7", 10, "ключ/1 &=%", 'a"b', "a"]
    api.put(
        "/vectors/batch",
        {
            "vectors": [
                {"id": row_id, "values": [1, place], "metadata": {"p": place}} for place, row_id in enumerate(ids)
            ]
        },
    )
    return api


IN_ORDER = [-4, 3, 10, UUID, "10", "7", "a", 'a"b', "b", "ключ/1 &=%"]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 9])
def test_following_the_links_reads_every_row_once_in_id_order(mixed_ids, limit):
    seen, path = [], f"/namespaces/vectors?limit={limit}"
    while path:
        response = mixed_ids.get(path)
        assert response.status_code == 200, response.content
        seen += [row["id"] for row in response.json()]
        path = next_path(response)

    assert seen == IN_ORDER


def test_a_link_is_absolute_and_keeps_the_other_parameters(mixed_ids):
    query = "namespace=default&limit=2&filter=%7B%22p__gte%22:0%7D&consistency=quorum&id_type=string&after=10"

    response = mixed_ids.get(f"/namespaces/vectors?{query}")

    url = re.fullmatch(r'<(.+)>; rel="next"', response["Link"])[1]
    parts = urlsplit(url)
    assert (parts.scheme, parts.netloc, parts.path) == ("http", "localhost", "/namespaces/vectors")
    assert parse_qs(parts.query) == {
        "namespace": ["default"],
        "limit": ["2"],
        "filter": ['{"p__gte":0}'],
        "consistency": ["quorum"],
        "after": ["a"],
    }


def test_the_last_page_has_no_link(mixed_ids):
    assert "Link" not in mixed_ids.get("/namespaces/vectors?limit=10")
    assert "Link" not in mixed_ids.get("/namespaces/vectors")


def test_after_reads_digits_as_an_integer_unless_told(mixed_ids):
    as_integer = mixed_ids.get("/namespaces/vectors?after=10").json()
    as_string = mixed_ids.get("/namespaces/vectors?after=10&id_type=string").json()

    assert [row["id"] for row in as_integer] == IN_ORDER[3:]
    assert [row["id"] for row in as_string] == IN_ORDER[5:]


def test_a_filter_limits_the_rows(mixed_ids):
    response = mixed_ids.get("/namespaces/vectors?limit=1&filter=%7B%22id__in%22:[3,%20%22b%22]%7D")

    assert [row["id"] for row in response.json()] == [3]
    assert [row["id"] for row in mixed_ids.get(next_path(response)).json()] == ["b"]


@pytest.mark.parametrize("count", [1000, 1001, 2500])
def test_a_long_page_is_streamed_and_is_the_same_json(api, count):
    rows = [{"id": number, "values": [number, 1], "metadata": {"n": number}} for number in range(count)]
    api.put("/vectors/batch", {"vectors": rows})

    response = api.get("/namespaces/vectors?limit=100000")

    assert response.streaming == (count > 1000)
    body = b"".join(response.streaming_content) if response.streaming else response.content
    answered = orjson.loads(body)
    assert [row["id"] for row in answered] == list(range(count))
    assert answered[-1] == {"id": count - 1, "values": [count - 1.0, 1.0], "metadata": {"n": count - 1}}
    assert response["Content-Type"] == "application/json"
    assert response["X-MLVDB-Complete"] == "true"


def next_path(response):
    """Return the path and query of the next page, None at the end."""
    if "Link" not in response:
        return None
    return re.fullmatch(r'<http://localhost(.+)>; rel="next"', response["Link"])[1]
