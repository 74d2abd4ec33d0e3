"""The page of a namespace's vectors: browse, filter, search by row and by vector, pictures, hostile rows."""

from __future__ import annotations

import html
import re
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import orjson
import pytest
from django.http import HttpResponse
from django.test import Client
from django.urls import reverse

from tests.vectors.admin_site import client_of, text_of
from vectors import runtime
from vectors.admin.rows import SHOWN_NUMBERS
from vectors.engine.ids import key_of
from vectors.errors import NotReady
from vectors.models import Namespace, ShardHead
from vectors.query_processor import LocalQueryProcessor, VectorBatch

HOSTILE = "<img src=x onerror=alert(1)>\"'&</pre></script><script>alert(2)</script>"


@pytest.fixture
def admin(served, admin_user) -> Client:
    """The superuser's client, on an empty node."""
    return client_of(admin_user)


def write(served: Any, rows: dict[Any, tuple[list[float], dict[str, Any]]], **attributes: Any) -> str:
    """Write rows {id: (values, metadata)} into a namespace and return the path of its page."""
    values = np.asarray([row[0] for row in rows.values()], dtype=np.float32)
    served.queries.namespace_put("rows", dimension=values.shape[1], **attributes)
    metadata = [orjson.dumps(row[1]) for row in rows.values()]
    served.queries.upsert_many(VectorBatch([key_of(row) for row in rows], values, metadata), namespace="rows")
    return page()


def page() -> str:
    """Return the path of the page."""
    return reverse("admin:vectors_namespace_vectors", args=[Namespace.objects.get(name="rows").pk])


def ids(response: HttpResponse) -> list[str]:
    """Return the ids on a page, as JSON texts, in their order."""
    assert response.status_code == 200
    return [html.unescape(text) for text in re.findall(r'class="id"><bdi>(.*?)</bdi>', response.content.decode())]


def scores(response: HttpResponse) -> list[float]:
    """Return the scores on a page."""
    return [float(text) for text in re.findall(r'class="score">(.*?)</td>', response.content.decode())]


def link(response: HttpResponse, text: str) -> str:
    """Return the target of the link of that text."""
    found = re.search(rf'<a [^>]*href="([^"]*)"[^>]*>{text}</a>', response.content.decode())
    assert found is not None, f"no link {text!r}"
    return html.unescape(found[1])


def errors(response: HttpResponse, form: str) -> dict[str, list[str]]:
    """Return the errors of `browse_form` or `search_form`."""
    assert response.status_code == 200
    return dict(response.context[form].errors)  # type: ignore[attr-defined]


@pytest.fixture
def line(served) -> str:
    """Thirty rows on a line: 0 to 29, with their number as metadata."""
    return write(served, {n: ([float(n), 1.0], {"n": n, "even": n % 2 == 0}) for n in range(30)}, metric="l2")


class TestBrowse:
    def test_an_empty_namespace_says_so(self, admin, served):
        served.queries.namespace_put("rows", dimension=2)
        assert "No row yet." in text_of(admin.get(page()))

    def test_goes_from_page_to_page_in_id_order(self, admin, line):
        first = admin.get(line)
        assert ids(first) == [str(n) for n in range(25)]
        second = admin.get(line + link(first, "next page"))
        assert ids(second) == ["25", "26", "27", "28", "29"]
        assert "next page" not in text_of(second)
        assert ids(admin.get(line + link(second, "first page"))) == ids(first)

    def test_has_pages_of_a_chosen_size_and_keeps_size_and_filter_on_the_way(self, admin, served):
        path = write(served, {n: ([1.0], {"n": n}) for n in range(130)})
        first = admin.get(path, {"limit": "50", "filter": '{"n__gte": 20}'})
        assert ids(first) == [str(n) for n in range(20, 70)]
        assert ids(admin.get(path + link(first, "next page"))) == [str(n) for n in range(70, 120)]

    def test_tells_integers_from_strings_and_goes_on_after_either(self, admin, served):
        rows = {7: ([1.0], {}), "7": ([1.0], {}), "77": ([1.0], {}), "seven": ([1.0], {})}
        path = write(served, rows)
        assert ids(admin.get(path)) == ["7", '"7"', '"77"', '"seven"']
        assert ids(admin.get(path, {"after": "7"})) == ['"7"', '"77"', '"seven"']
        assert ids(admin.get(path, {"after": "7", "id_type": "string"})) == ['"77"', '"seven"']

    def test_shows_metadata_in_lines_and_values_shortened(self, admin, served):
        metadata = {"color": "red", "author": {"country": "DE"}, "tags": ["a", "b"]}
        response = admin.get(write(served, {1: ([0.123456789, *range(1, 20)], metadata)}))
        assert '"color": "red", "author": { "country": "DE" }, "tags": ["a", "b"]' in text_of(response)
        assert f"0.1235, 1, 2, 3, 4, 5, … {20 - SHOWN_NUMBERS} more" in text_of(response)

    @pytest.mark.parametrize("metadata", [{f"key{n}": n for n in range(40)}, {"text": "long" * 1000}])
    def test_folds_long_metadata(self, admin, served, metadata):
        response = admin.get(write(served, {1: ([1.0], metadata)}))
        assert re.search(r"<details><summary>[\d,]+ characters</summary><pre>", response.content.decode())
        name, value = list(metadata.items())[-1]
        assert f"{orjson.dumps(name).decode()}: {orjson.dumps(value).decode()}" in text_of(response)

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("filter", "{", "not valid JSON"),
            ("filter", "[1]", "a filter is an object"),
            ("filter", '{"n__foo": 1}', "n__foo: unknown lookup 'foo'"),
            ("filter", '{"n__in": 3}', "in takes a list"),
            ("filter", '{"OR": []}', "OR needs at least one filter"),
            ("after", "99999999999999999999", "must fit in 64 bits"),
            ("after", "x" * 256, "at most 255 bytes"),
            ("limit", "1000000", "Select a valid choice"),
            ("limit", "all", "Select a valid choice"),
        ],
    )
    def test_shows_what_is_refused_beside_its_field(self, admin, line, field, value, message):
        response = admin.get(line, {field: value})
        found = errors(response, "browse_form")
        assert list(found) == [field]
        assert message in found[field][0]
        assert html.escape(found[field][0]) in response.content.decode()
        assert ids(response) == []

    def test_bounds_a_filter_by_the_settings(self, admin, line, settings):
        settings.MLVDB_MAX_FILTER_CONDITIONS = 1
        assert (
            "at most 1 conditions"
            in errors(admin.get(line, {"filter": '{"n": 1, "m": 2}'}), "browse_form")["filter"][0]
        )


class TestSearch:
    def test_more_like_this_leaves_out_the_row_itself(self, admin, line):
        response = admin.get(line, {"id": "10", "top_k": "4"})
        assert ids(response) == ["9", "11", "8", "12"]
        assert scores(response) == [1, 1, 4, 4]
        assert "More like 10" in text_of(response)
        assert "squared distance, lower is better" in text_of(response)

    def test_every_row_has_a_link_that_finds_what_is_like_it(self, admin, served):
        rows: dict[Any, Any] = {7: ([1.0, 0.0], {}), "7": ([0.0, 1.0], {}), "a/b?c=d&e": ([1.0, 1.0], {})}
        path = write(served, rows)
        links = re.findall(r'class="more-like-this" href="([^"]*)"', admin.get(path).content.decode())
        found = [ids(admin.get(path + html.unescape(target))) for target in links]
        assert found == [['"a/b?c=d&e"', '"7"'], ['"a/b?c=d&e"', "7"], ["7", '"7"']]
        assert parse_qs(html.unescape(links[1]).lstrip("?")) == {"id": ["7"], "id_type": ["string"]}

    def test_finds_the_rows_nearest_to_a_pasted_vector(self, admin, line):
        response = admin.post(line, {"query": "[3.2, 1]", "top_k": "2"})
        assert ids(response) == ["3", "4"]
        assert "Most similar to the vector" in text_of(response)

    def test_takes_a_vector_too_long_for_a_url(self, admin, served):
        path = write(served, {1: ([0.123456789] * 4096, {})})
        text = orjson.dumps([0.12345678912345] * 4096).decode()
        assert len(text) > 64_000
        assert ids(admin.post(path, {"query": text})) == ["1"]

    def test_compares_by_another_metric_and_only_what_a_filter_lets_through(self, admin, line):
        response = admin.post(line, {"id": "10", "metric": "ip", "top_k": "2", "filter": '{"even": true}'})
        assert ids(response) == ["28", "26"]
        assert "inner product, higher is better" in text_of(response)

    def test_keeps_what_was_asked_in_the_form(self, admin, line):
        form = admin.post(line, {"id": "10", "top_k": "3", "metric": "l2", "filter": '{"n__gt": 3}'})
        assert [form.context["search_form"][name].value() for name in ("id", "top_k", "metric", "filter")] == [
            "10", "3", "l2", '{"n__gt": 3}',
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("sent", "field", "message"),
        [
            ({"id": ""}, "id", "Give an id or a vector."),
            ({"id": "1", "query": "[1, 2]"}, "query", "not both"),
            ({"id": "99"}, "id", "there is no vector 99"),
            ({"id": "1", "id_type": "string"}, "id", "there is no vector '1'"),
            ({"id": "9" * 30}, "id", "must fit in 64 bits"),
            ({"query": "1, 2"}, "query", "not valid JSON"),
            ({"query": "{}"}, "query", "a list of numbers"),
            ({"query": "[]"}, "query", "a list of numbers"),
            ({"query": "[1, true]"}, "query", "entry 1 must be a number, got bool"),
            ({"query": '[1, "2"]'}, "query", "entry 1 must be a number, got str"),
            ({"query": "[1, null]"}, "query", "entry 1 must be a number"),
            ({"query": "[NaN, 1]"}, "query", "not valid JSON"),
            ({"query": "[1e39, 1]"}, "query", "entry 0 is beyond float32"),
            ({"query": f"[1, {'9' * 400}]"}, "query", ""),
            ({"query": "[1, 2, 3]"}, "query", "has dimension 2, got 3 values"),
            ({"query": str([0.0] * 4097)}, "query", "at most 4096 numbers"),
            ({"id": "1", "top_k": "0"}, "top_k", "greater than or equal to 1"),
            ({"id": "1", "top_k": "251"}, "top_k", "less than or equal to 250"),
            ({"id": "1", "top_k": "many"}, "top_k", "whole number"),
            ({"id": "1", "metric": "hamming"}, "metric", "Select a valid choice"),
            ({"id": "1", "filter": '{"n__foo": 1}'}, "filter", "unknown lookup"),
        ],
    )
    def test_shows_what_is_refused_beside_its_field(self, admin, line, sent, field, message):
        response = admin.post(line, sent)
        found = errors(response, "search_form")
        assert list(found) == [field]
        assert message in found[field][0]
        assert ids(response) == []

    def test_needs_the_token_of_the_form(self, served, line, admin_user):
        client = Client(enforce_csrf_checks=True)
        client.force_login(admin_user)
        assert client.post(line, {"id": "1"}).status_code == 403


class TestPictures:
    def test_every_row_and_what_was_searched_by_is_shown_as_a_picture(self, admin, served):
        path = write(served, {n: ([n, 1, 2, 3, 4, 5], {}) for n in range(3)}, picture="3x2")
        picture = r'<img class="picture" src="data:image/png;base64,[A-Za-z0-9+/=]+" width="63" height="42"'
        assert len(re.findall(picture, admin.get(path).content.decode())) == 3
        assert len(re.findall(picture, admin.get(path, {"id": "1"}).content.decode())) == 2 + 1
        assert len(re.findall(picture, admin.post(path, {"query": "[1,2,3,4,5,6]"}).content.decode())) == 3 + 1

    def test_there_are_none_without_a_size(self, admin, line):
        assert "<img" not in admin.get(line).content.decode()


class TestHostileRows:
    @pytest.fixture
    def path(self, served) -> str:
        rows: dict[Any, Any] = {
            HOSTILE: ([1.0, 0.0], {HOSTILE: HOSTILE, "deep": [{HOSTILE: [HOSTILE]}]}),
            "a\x00b\nc\u2028\u202egnp.exe": ([0.0, 1.0], {"nul": "\x00", "turn": "\u202e"}),
            " spaces ": ([1.0, 1.0], {}),
            "ünïcödé-☃": ([1.0, 2.0], {"s": "日本"}),
        }
        return write(served, rows)

    def test_are_escaped_wherever_they_appear(self, admin, path):
        for response in (
            admin.get(path),
            admin.get(path, {"id": HOSTILE}),
            admin.get(path, {"id": HOSTILE + "!"}),
            admin.get(path, {"filter": HOSTILE, "after": HOSTILE}),
            admin.post(path, {"query": HOSTILE, "filter": HOSTILE, "metric": HOSTILE, "top_k": HOSTILE}),
        ):
            assert response.status_code == 200
            content = response.content.decode()
            assert "<img src=x" not in content
            assert "alert(2)</script>" not in content
            assert "onerror=alert(1)&gt;" in content

    def test_are_found_again_by_their_links(self, admin, path):
        links = re.findall(r'class="more-like-this" href="([^"]*)"', admin.get(path).content.decode())
        assert len(links) == 4
        for target in links:
            assert len(ids(admin.get(path + html.unescape(target)))) == 3

    def test_control_characters_of_ids_are_shown(self, admin, path):
        assert any(text.startswith(r'"a\u0000b\nc') for text in ids(admin.get(path)))


class TestTrouble:
    def test_an_engine_that_is_not_open_is_a_page_with_status_503(self, admin, line, monkeypatch):
        def not_ready(self: Any, **_: Any) -> None:
            raise NotReady("shard shard_0 is being opened: 40 %")

        monkeypatch.setattr(LocalQueryProcessor, "count", not_ready)
        response = admin.get(line)
        assert response.status_code == 503
        assert "shard shard_0 is being opened: 40 %" in text_of(response)

    def test_what_is_left_of_a_damaged_shard_is_shown_and_said_not_to_be_all(self, admin, served, line, batch):
        served.queries.upsert_many(batch(100, 5, dimension=2), namespace="rows")
        entry = ShardHead.objects.get().log.get(seq=3)
        entry.payload = bytes(entry.payload)[:-1]
        entry.save()
        served.restart()
        runtime.runtime()
        for response in (admin.get(line), admin.get(line, {"id": "1"})):
            assert "Not all rows: shard_0 has lost data" in text_of(response)
            assert len(ids(response)) in (25, 10)

    def test_a_namespace_that_is_gone_leads_back_with_a_message(self, admin, served, line):
        served.queries.namespace_drop("rows")
        response = admin.get(line, follow=True)
        assert "doesn’t exist" in text_of(response)
