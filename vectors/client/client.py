"""`Client`: every endpoint of a node's vectors (docs/api.md) as a method, arrays in and out."""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self, Unpack
from urllib.parse import parse_qsl, quote, urlsplit

import numpy as np
from numpy.typing import ArrayLike
from requests.utils import parse_header_links

from vectors.client.errors import ClientError
from vectors.client.retries import Retries
from vectors.client.rows import (
    Explanation,
    Fetched,
    Hit,
    Id,
    Record,
    Rows,
    hit_of,
    matrix,
    needs_id_type,
    pack,
    packed_batches,
    plain_id,
    record_of,
    vector,
)
from vectors.client.searches import SearchOptions, search_body
from vectors.client.session import Reply, Session

DEFAULT_NAMESPACE = "default"
DEFAULT_BATCH_ROWS = 1000
IDS_PER_REQUEST = 1000
BATCH_BYTES = 32 * 1024 * 1024
"""A body of an upsert stays below this, half of what a node accepts by default."""


class UpsertResult(NamedTuple):
    """What an upsert wrote: the ids in the order of the rows, and the position of the last batch per shard."""

    ids: list[int | str]
    seq: dict[str, str]


class Client:
    """A node, or a cluster behind it. Thread-safe; connections are kept and shared.

    Reads see every earlier write of this client, whichever copy answers: each write's `seq` is kept and sent along
    (`X-MLVDB-Min-Seq`). A write that a replica refuses is sent to the primary that it names, and so are those after it.
    Ids are made here when none are given, so a repeated insert writes the same row. Requests that may be repeated are,
    as `retries` say. Everything that fails raises a `ClientError`.

    `timeout` is how long to wait for an answer, in seconds. `api_key` is needed where the node has keys.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        timeout: float = 30.0,
        *,
        retries: Retries | None = None,
    ) -> None:
        self._session = Session(base_url, api_key=api_key, timeout_s=timeout, retries=retries or Retries())
        self._options: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the client can still be used, and opens new ones."""
        self._session.close()

    @property
    def base_url(self) -> str:
        """The URL of the node."""
        return self._session.base_url

    @property
    def min_seq(self) -> dict[str, str]:
        """The newest position of each shard that this client has written to: label → opaque token."""
        return self._session.tokens.as_dict()

    def forget_writes(self) -> None:
        """Read from any state again: after `token_lost`, which says that a write of this client is gone."""
        self._session.tokens.forget()

    def with_options(
        self,
        *,
        consistency: str | None = None,
        read_preference: str | None = None,
        timeout_s: float | None = None,
        partial: bool | None = None,
    ) -> Self:
        """Return this client with consistency options for all that is called on it; connections and writes are shared.

        `consistency` is one, quorum or all; `read_preference` primary, replica or nearest; `timeout_s` the node's own
        deadline; `partial` whether an answer may lack shards that failed.
        """
        given = {
            "X-MLVDB-Consistency": consistency,
            "X-MLVDB-Read-Preference": read_preference,
            "X-MLVDB-Timeout": None if timeout_s is None else f"{timeout_s:g}",
            "X-MLVDB-Partial": None if partial is None else _flag(partial),
        }
        changed = copy.copy(self)
        changed._options = {**self._options, **{name: value for name, value in given.items() if value is not None}}
        return changed

    # Writes.

    def insert(
        self,
        values: ArrayLike,
        *,
        id: Id | None = None,
        metadata: Mapping[str, Any] | None = None,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> int | str:
        """Write one row, (d,) numbers, and return its id (a new UUID when none is given); a known id is replaced."""
        row: dict[str, Any] = {"id": _new_id() if id is None else plain_id(id), "values": vector(values).tobytes()}
        if metadata is not None:
            row["metadata"] = metadata
        answer = self._write("POST", "/vectors", row, namespace=namespace)
        inserted: int | str = answer["id"]
        return inserted

    def upsert(
        self,
        values: ArrayLike,
        *,
        ids: Sequence[Id] | np.ndarray | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        namespace: str = DEFAULT_NAMESPACE,
        batch_rows: int = DEFAULT_BATCH_ROWS,
    ) -> UpsertResult:
        """Write many rows: `values` (n, d) numbers, `ids` (n) and `metadata` (n objects) where given.

        They go in batches of `batch_rows`, each of which is written whole or not at all. An error's `rows_written`
        says how many rows of the earlier batches are written. Raise ValueError for counts that differ, and for a
        number that is not finite, before anything is sent.
        """
        rows = matrix(values)
        count = len(rows)
        plain = [_new_id() for _ in range(count)] if ids is None else [plain_id(row_id) for row_id in _listed(ids)]
        for name, column in (("ids", plain), ("metadata", metadata)):
            if column is not None and len(column) != count:
                raise ValueError(f"{count} rows of values, but {len(column)} {name}")
        result = UpsertResult([], {})
        for start in range(0, count, max(1, batch_rows)):
            part = slice(start, start + max(1, batch_rows))
            bodies = packed_batches(
                plain[part], rows[part], None if metadata is None else metadata[part], max_bytes=BATCH_BYTES
            )
            for _rows, body in bodies:
                try:
                    answer = self._write_packed("PUT", "/vectors/batch", body, namespace=namespace)
                except ClientError as error:
                    error.rows_written = len(result.ids)
                    raise
                result.ids.extend(answer["ids"])
                result.seq.update(answer["seq"])
        return result

    def patch(self, id: Id, metadata: Mapping[str, Any], *, namespace: str = DEFAULT_NAMESPACE) -> None:
        """Merge keys into a row's metadata. Raise NotFound."""
        path, params = _row_path(id)
        self._write("PATCH", path, {"metadata": metadata}, namespace=namespace, params=params)

    def delete(
        self,
        ids: Sequence[Id] | np.ndarray | None = None,
        *,
        filter: Mapping[str, Any] | None = None,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> int:
        """Delete rows by ids or by a filter and return how many there were. Raise NotFound for an unknown namespace.

        After a repeated request the number may be too small: the first one may have deleted rows.
        """
        if (ids is None) == (filter is None):
            raise ValueError("give ids or filter")
        if ids is None:
            # Not repeatable: between two tries another client may insert rows that match.
            answer = self._write("POST", "/vectors/delete", {"filter": filter}, namespace=namespace, repeatable=False)
            return int(answer["deleted"])
        plain = [plain_id(row_id) for row_id in _listed(ids)]
        deleted = 0
        for start in range(0, len(plain), IDS_PER_REQUEST):
            body = {"ids": plain[start : start + IDS_PER_REQUEST]}
            deleted += self._write("POST", "/vectors/delete", body, namespace=namespace)["deleted"]
        return deleted

    # Reads.

    def get(self, id: Id, *, namespace: str = DEFAULT_NAMESPACE) -> Record:
        """Return a row. Raise NotFound."""
        path, params = _row_path(id)
        return record_of(self._read("GET", path, namespace=namespace, params=params).data)

    def fetch(self, ids: Sequence[Id] | np.ndarray, *, namespace: str = DEFAULT_NAMESPACE) -> Fetched:
        """Return the rows of many ids."""
        plain = [plain_id(row_id) for row_id in _listed(ids)]
        fetched = Fetched([], [])
        for start in range(0, len(plain), IDS_PER_REQUEST):
            body = {"ids": plain[start : start + IDS_PER_REQUEST]}
            answer = self._read("POST", "/vectors/fetch", body, namespace=namespace).data
            fetched.records.extend(map(record_of, answer["vectors"]))
            fetched.missing.extend(answer["missing"])
        return fetched

    def search(
        self,
        query: ArrayLike | None = None,
        *,
        id: Id | None = None,
        namespace: str = DEFAULT_NAMESPACE,
        **options: Unpack[SearchOptions],
    ) -> Rows[Hit]:
        """Return the rows most similar to a query, (d,) numbers, or to the row of an id, best first.

        cosine and ip: a higher score is better; l2 (squared distance): a lower one. The answer's `complete` says
        whether every shard took part.
        """
        reply = self._read("POST", "/search", search_body(query, id, options), namespace=namespace)
        return Rows[Hit].of(map(hit_of, reply.data), reply.headers)

    def search_batch(
        self, queries: ArrayLike, *, namespace: str = DEFAULT_NAMESPACE, **options: Unpack[SearchOptions]
    ) -> Rows[list[Hit]]:
        """Answer many queries, (q, d) numbers, on one state of the namespace: a list of hits for each, in order."""
        searches = [search_body(query, None, options) for query in matrix(queries)]
        if not searches:
            return Rows[list[Hit]]()
        reply = self._read("POST", "/search/batch", {"searches": searches}, namespace=namespace)
        return Rows[list[Hit]].of(([hit_of(hit) for hit in hits] for hits in reply.data), reply.headers)

    def explain(
        self,
        query: ArrayLike | None = None,
        *,
        id: Id | None = None,
        namespace: str = DEFAULT_NAMESPACE,
        **options: Unpack[SearchOptions],
    ) -> Explanation:
        """Search, and return the hits with the account of each shard."""
        body = search_body(query, id, options)
        answer = self._read("POST", "/search", body, namespace=namespace, params={"explain": "1"}).data
        hits = [hit_of(hit) for hit in answer["results"]]
        return Explanation(hits, answer["complete"], answer["shards"], answer["took_ms"])

    def count(self, *, filter: Mapping[str, Any] | None = None, namespace: str = DEFAULT_NAMESPACE) -> int:
        """Return how many rows match."""
        body = {} if filter is None else {"filter": filter}
        return int(self._read("POST", "/count", body, namespace=namespace).data["count"])

    def scroll(
        self,
        *,
        after: Id | None = None,
        filter: Mapping[str, Any] | None = None,
        page_rows: int = 1000,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> Iterator[Record]:
        """Yield the rows of a namespace in id order, read page by page; rows written meanwhile may be among them."""
        params = {"limit": str(page_rows)}
        if filter is not None:
            params["filter"] = json.dumps(filter)
        if after is not None:
            params["after"] = str(plain_id(after))
            if needs_id_type(plain_id(after)):
                params["id_type"] = "string"
        while True:
            reply = self._read("GET", "/namespaces/vectors", namespace=namespace, params=params)
            yield from map(record_of, reply.data)
            following = _next_params(reply.headers)
            if following is None:
                return
            params = following

    # Namespaces and the node.

    def namespaces(self) -> list[str]:
        """Return the names."""
        return list(self._read("GET", "/namespaces").data["namespaces"])

    def namespace_details(self) -> list[dict[str, Any]]:
        """Return what is known of every namespace: dimension, metric, count, segments, measured recall and more."""
        return list(self._read("GET", "/namespaces", params={"detail": "1"}).data["namespaces"])

    def namespace_put(
        self,
        name: str,
        *,
        dimension: int | None = None,
        metric: str | None = None,
        recall_target: float | None = None,
        picture: str | None = None,
    ) -> dict[str, Any]:
        """Make or change a namespace and return what is known of it. Raise Conflict for another dimension or metric."""
        given = {"dimension": dimension, "metric": metric, "recall_target": recall_target, "picture": picture}
        body = {field: value for field, value in given.items() if value is not None}
        answer: dict[str, Any] = self._write("PUT", f"/namespaces/{quote(name, safe='')}", body)["namespace"]
        return answer

    def namespace_drop(self, name: str) -> int:
        """End a namespace and return how many rows it had. Raise NotFound."""
        # Not repeatable: between two tries another client may make it anew.
        answer = self._write("DELETE", f"/namespaces/{quote(name, safe='')}", None, repeatable=False)
        return int(answer["deleted"])

    def storage_info(self) -> dict[str, Any]:
        """Return the totals of the node."""
        answer: dict[str, Any] = self._read("GET", "/storage/info").data
        return answer

    def health(self) -> dict[str, Any]:
        """Return what the node says of its health."""
        answer: dict[str, Any] = self._plain("GET", "/health").data
        return answer

    def is_ready(self) -> bool:
        """Return whether the node is warm; asked once, an answer of any kind is no error."""
        return self._plain("GET", "/readyz", accepted=(503,)).status == 200

    def metrics(self) -> str:
        """Return the node's metrics in Prometheus's text form."""
        return str(self._plain("GET", "/metrics", headers={"Accept": "text/plain"}).data)

    def log_level(self, level: str) -> None:
        """Set the level of the node's log: debug, info, warning, error or critical."""
        self._plain("POST", "/log/level", params={"level": level})

    # The ways out.

    def _read(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        namespace: str | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Reply:
        headers = dict(self._options)
        if min_seq := self._session.tokens.header():
            headers["X-MLVDB-Min-Seq"] = min_seq
        return self._session.call(
            method,
            path,
            params=_with_namespace(params, namespace),
            body=None if body is None else pack(body),
            headers=headers,
            repeatable=True,
        )

    def _write(
        self,
        method: str,
        path: str,
        body: Any,
        *,
        namespace: str | None = None,
        params: Mapping[str, str] | None = None,
        repeatable: bool = True,
    ) -> dict[str, Any]:
        packed = None if body is None else pack(body)
        return self._write_packed(method, path, packed, namespace=namespace, params=params, repeatable=repeatable)

    def _write_packed(
        self,
        method: str,
        path: str,
        body: bytes | None,
        *,
        namespace: str | None = None,
        params: Mapping[str, str] | None = None,
        repeatable: bool = True,
    ) -> dict[str, Any]:
        answer: dict[str, Any] = self._session.call(
            method,
            path,
            params=_with_namespace(params, namespace),
            body=body,
            headers=self._options,
            repeatable=repeatable,
            writes=True,
        ).data
        self._session.tokens.remember(answer.get("seq", {}))
        return answer

    def _plain(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        accepted: tuple[int, ...] = (),
    ) -> Reply:
        sent = {"Accept": "application/json", **(headers or {})}
        return self._session.call(method, path, params=params, headers=sent, repeatable=True, accepted=accepted)


def _row_path(row_id: Id) -> tuple[str, dict[str, str]]:
    plain = plain_id(row_id)
    return f"/vectors/{quote(str(plain), safe='')}", {"id_type": "string"} if needs_id_type(plain) else {}


def _next_params(headers: Mapping[str, str]) -> dict[str, str] | None:
    """Return the query of the next page. Its path and host are this client's own, whatever a proxy made of them."""
    for link in parse_header_links(headers.get("Link", "")):
        if link.get("rel") == "next":
            return dict(parse_qsl(urlsplit(link["url"]).query, keep_blank_values=True))
    return None


def _with_namespace(params: Mapping[str, str] | None, namespace: str | None) -> dict[str, str]:
    return {**(params or {}), **({} if namespace is None else {"namespace": namespace})}


def _listed(ids: Sequence[Id] | np.ndarray) -> Sequence[Id]:
    if isinstance(ids, (str, bytes)):
        raise TypeError("ids must be a sequence of ids, not one string")
    return ids.tolist() if isinstance(ids, np.ndarray) else ids


def _new_id() -> str:
    return str(uuid.uuid4())


def _flag(value: bool) -> str:
    return "true" if value else "false"
