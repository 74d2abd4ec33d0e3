"""The port between views and data: what a query processor takes and answers.

`vectors.query_processor.local` answers from this node; a cluster's answers from many. Ids travel as keys
(`vectors.engine.ids`), metadata as the compact JSON bytes it is stored in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from vectors.engine.filters import Filter
from vectors.engine.namespace import NamespaceSpec
from vectors.engine.slots import SlotSet

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Scope:
    """What of a shard copy a request is about, as the node that spreads it over shards says; clients never say it.

    `epoch` is that of the slot table it was planned by: a copy that has changed its slots at a later one refuses with
    StaleScope. `owned` are the slots whose rows count (None: all that the copy has). `namespace` is the namespace as
    the registry knows it: another one of that name, left behind by a drop, is not seen by reads and ended by writes.
    """

    epoch: int
    owned: SlotSet | None = None
    namespace: NamespaceSpec | None = None


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """The consistency parameters of a request (API §2), parsed.

    `read_preference` None is the copy that is asked, `partial` None the operation's own default. `scope` is set by
    nodes that ask one another, None otherwise.
    """

    consistency: str = "one"
    read_preference: str | None = None
    min_seq: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float | None = None
    partial: bool | None = None
    idempotency_key: str | None = None
    scope: Scope | None = None


DEFAULT_OPTIONS = RequestOptions()

WHAT_IS_THERE = RequestOptions(partial=True)
"""The options of a node's own pages and measures: whatever its copy has, incomplete or old."""


@dataclass(frozen=True, slots=True)
class VectorBatch:
    """Rows to upsert: `keys` (n; None: the server generates a UUID), `values` (n, d) float32 C-contiguous and finite,
    `metadata` (n) compact JSON objects (`b"{}"` when the client sent none)."""

    keys: Sequence[bytes | None]
    values: np.ndarray
    metadata: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What a write did: the keys in the order of the request, rows changed, an opaque token per shard label.

    `positions` has label → (uid of the shard, term, seq) of the newest entry that the write made. `shards` is there
    where some may have been left out (a delete by filter that allows it).
    """

    keys: Sequence[bytes]
    count: int
    seq: Mapping[str, str]
    positions: Mapping[str, tuple[str, int, int]] = field(default_factory=dict)
    shards: Sequence[ShardAccount] = ()


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """One search: `query` (d,) float32 or the `key` of a row to search by; `metric` None is the namespace's own.

    `recall` None is the namespace's target. `score_threshold` keeps scores at least (l2: at most) that good.
    """

    query: np.ndarray | None = None
    key: bytes | None = None
    top_k: int = 10
    metric: str | None = None
    filter: Filter | None = None
    recall: float | None = None
    exact: bool = False
    with_values: bool = True
    with_metadata: bool = True
    score_threshold: float | None = None
    offset: int = 0


class Record(NamedTuple):
    """One row: `values` (d,) float32 and `metadata` compact JSON, None where they were not asked for."""

    key: bytes
    values: np.ndarray | None
    metadata: bytes | None


class Hit(NamedTuple):
    """One row of a search's answer."""

    key: bytes
    values: np.ndarray | None
    metadata: bytes | None
    score: float


@dataclass(frozen=True, slots=True)
class ShardAccount:
    """How one shard took part in an answer.

    `lag` is how many operations the copy may lack, None when nobody can tell; `candidates` are rows that were scored
    exactly. The answer has every entry of the shard's log up to (`term`, `seq`); 0 where the copy did not say.
    """

    shard: str
    copy: str
    lag: int | None = 0
    took_ms: float = 0.0
    strategy: str = "exact"
    candidates: int = 0
    error: str | None = None
    term: int = 0
    seq: int = 0

    def of_search(self, *, took_ms: float, strategy: str, candidates: int) -> ShardAccount:
        """Return the account of a search. Every search makes one: `replace` would take several times as long."""
        return ShardAccount(
            self.shard, self.copy, self.lag, took_ms, strategy, candidates, self.error, self.term, self.seq
        )


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """A value and the account of the shards behind it."""

    value: T
    shards: Sequence[ShardAccount]

    @property
    def failed(self) -> list[str]:
        """Labels of the shards whose part is missing or incomplete."""
        return [account.shard for account in self.shards if account.error is not None]

    @property
    def complete(self) -> bool:
        """Whether every shard answered in full."""
        return not self.failed


class Fetched(NamedTuple):
    """Rows found for a list of keys, and the keys not found, both in the order asked."""

    records: list[Record]
    missing: list[bytes]


class Page(NamedTuple):
    """Rows in key order; `next_after` is the key to go on after, None at the end."""

    records: list[Record]
    next_after: bytes | None


@dataclass(frozen=True, slots=True)
class NamespaceInfo:
    """What is known of a namespace. `segments` and bytes count this node's copies.

    `indexed_rows` lie in segments with an index. `measured_recall` is the share of true neighbours that searches by
    index found when it was last measured, at `recall_measured_at` (ISO 8601), or when the indexes were tuned where that
    is None. It is itself None where every search is exact.
    """

    name: str
    uid: str
    dimension: int
    metric: str
    recall_target: float
    picture: str
    count: int
    segments: int
    tail_rows: int
    size_bytes: int
    measured_recall: float | None
    indexed_rows: int = 0
    recall_measured_at: str | None = None


@dataclass(frozen=True, slots=True)
class StorageInfo:
    """Totals of the node; `size_bytes` are the engines' bytes in memory, mapped segments included."""

    total_vectors: int
    size_bytes: int
    vectors_per_namespace: Mapping[str, int]
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class QueryProcessor(Protocol):
    """What views call. Every method raises the errors of `vectors.errors`; none returns a silent subset."""

    def insert(self, batch: VectorBatch, *, namespace: str, options: RequestOptions = DEFAULT_OPTIONS) -> WriteResult:
        """Write one row; a known id is replaced. The namespace is made by its first vector."""

    def upsert_many(
        self, batch: VectorBatch, *, namespace: str, options: RequestOptions = DEFAULT_OPTIONS
    ) -> WriteResult:
        """Write many rows, all or nothing per shard; of a repeated id the last wins."""

    def patch(
        self, key: bytes, *, metadata: bytes, namespace: str, options: RequestOptions = DEFAULT_OPTIONS
    ) -> WriteResult:
        """Merge a compact JSON object into a row's metadata, key by key. Raise VectorNotFound."""

    def delete(
        self,
        *,
        namespace: str,
        keys: Sequence[bytes] | None = None,
        filter: Filter | None = None,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> WriteResult:
        """Delete by keys or by filter; `count` is the number of rows that were there. Raise NamespaceNotFound."""

    def get(self, key: bytes, *, namespace: str, options: RequestOptions = DEFAULT_OPTIONS) -> Answer[Record]:
        """Return a row. Raise NamespaceNotFound or VectorNotFound."""

    def fetch(
        self, keys: Sequence[bytes], *, namespace: str, options: RequestOptions = DEFAULT_OPTIONS
    ) -> Answer[Fetched]:
        """Return the rows of `keys`; a repeated key is answered each time."""

    def find_similar(
        self, request: SearchRequest, *, namespace: str, options: RequestOptions = DEFAULT_OPTIONS
    ) -> Answer[list[Hit]]:
        """Return the best rows, best first, equal scores by id. Raise DimensionMismatch, VectorNotFound (by id)."""

    def search_batch(
        self, requests: Sequence[SearchRequest], *, namespace: str, options: RequestOptions = DEFAULT_OPTIONS
    ) -> Answer[list[list[Hit]]]:
        """Answer many searches on one state of the namespace."""

    def count(
        self, *, namespace: str, filter: Filter | None = None, options: RequestOptions = DEFAULT_OPTIONS
    ) -> Answer[int]:
        """Return how many rows match."""

    def scroll(
        self,
        *,
        namespace: str,
        limit: int,
        after: bytes | None = None,
        filter: Filter | None = None,
        with_values: bool = True,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> Answer[Page]:
        """Return up to `limit` rows after a key, in key order."""

    def list_namespaces(self, *, options: RequestOptions = DEFAULT_OPTIONS) -> Answer[list[str]]:
        """Return the names, sorted."""

    def namespace_details(self, *, options: RequestOptions = DEFAULT_OPTIONS) -> Answer[list[NamespaceInfo]]:
        """Return what is known of every namespace, sorted by name."""

    def namespace_put(
        self,
        name: str,
        *,
        dimension: int | None = None,
        metric: str | None = None,
        recall_target: float | None = None,
        picture: str | None = None,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> NamespaceInfo:
        """Make or change a namespace; raise Conflict for another dimension or metric than it has."""

    def namespace_drop(self, name: str, *, options: RequestOptions = DEFAULT_OPTIONS) -> WriteResult:
        """End a namespace; `count` is the number of its rows. Raise NamespaceNotFound."""

    def storage_info(self, *, options: RequestOptions = DEFAULT_OPTIONS) -> Answer[StorageInfo]:
        """Return totals."""
