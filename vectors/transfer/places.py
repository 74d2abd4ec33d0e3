"""Where rows go to and come from: a running node, over HTTP, or the data dir of one that is not running."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import orjson
from django.conf import settings

from mlvdb_site.processes.record import running_record
from vectors.client import Client, ClientError, NotAuthenticated, Retries
from vectors.engine.filters import Filter
from vectors.engine.ids import id_of, key_of
from vectors.errors import CheckpointBehind, MLVectorDBError
from vectors.query_processor import VectorBatch, query_processor_for
from vectors.query_processor.parsing import filter_of, metadata_of
from vectors.transfer.companions import RowId
from vectors.transfer.sources import Batch

logger = logging.getLogger(__name__)

API_KEY_VARIABLE = "MLVDB_API_KEY"

# A node that is restarted during a load of hours is waited for, about a minute.
_PATIENCE = Retries(attempts=12, first_s=0.2, longest_s=10.0)


class PlaceError(RuntimeError):
    """Raised when a node refuses or does not answer; the message is for the person at the terminal."""


class Known(NamedTuple):
    """What is known of a namespace that exists."""

    dimension: int
    metric: str
    rows: int


class Row(NamedTuple):
    """A row as it is exported: `values` (d,) float32, `metadata` compact JSON."""

    id: RowId
    values: np.ndarray
    metadata: bytes


class Place(Protocol):
    """A node's namespaces. Methods raise PlaceError."""

    name: str
    """What a person calls it."""

    writers: int
    """How many threads may write at once to good effect."""

    def known(self, namespace: str) -> Known | None:
        """Return what is known of a namespace, None when it does not exist."""

    def make(self, namespace: str, *, dimension: int, metric: str | None) -> None:
        """Make a namespace, or see that it has this dimension and metric."""

    def write(self, namespace: str, batch: Batch) -> None:
        """Upsert rows."""

    def count_ids(self, namespace: str, ids: list[RowId]) -> int:
        """Return how many of some ids exist."""

    def count(self, namespace: str, *, filter: Mapping[str, Any] | None) -> int:
        """Return how many rows match."""

    def rows(self, namespace: str, *, filter: Mapping[str, Any] | None, page_rows: int) -> Iterator[Row]:
        """Yield rows in id order."""

    def close(self) -> None:
        """Let go of connections."""


def open_place(*, url: str | None, api_key: str | None) -> Place:
    """Return the node at `url`, else the running node of this data dir, else the data dir itself."""
    if url is None:
        record = running_record(settings.NODE_FILES)
        url = None if record is None else record.url
    if url is None:
        return DataDirPlace()
    try:
        return NodePlace(url, api_key or os.environ.get(API_KEY_VARIABLE))
    except ValueError as error:
        raise PlaceError(str(error)) from None


class NodePlace:
    """A running node."""

    writers = 2

    def __init__(self, url: str, api_key: str | None) -> None:
        self._client = Client(url, api_key, timeout=120.0, retries=_PATIENCE)
        # For the first question: a wrong URL is to be said at once.
        self._first = Client(url, api_key, timeout=30.0, retries=Retries(attempts=3))
        self.name = f"the node at {self._client.base_url}"

    def known(self, namespace: str) -> Known | None:
        """Return what is known of a namespace, None when it does not exist."""
        try:
            details = self._first.namespace_details()
        except ClientError as error:
            raise self._error(error) from error
        return next(
            (Known(one["dimension"], one["metric"], one["count"]) for one in details if one["name"] == namespace), None
        )

    def make(self, namespace: str, *, dimension: int, metric: str | None) -> None:
        """Make a namespace, or see that it has this dimension and metric."""
        try:
            self._client.namespace_put(namespace, dimension=dimension, metric=metric)
        except ClientError as error:
            raise self._error(error) from error

    def write(self, namespace: str, batch: Batch) -> None:
        """Upsert rows."""
        try:
            self._client.upsert(
                batch.values,
                ids=batch.ids,
                metadata=batch.metadata,
                namespace=namespace,
                batch_rows=len(batch.ids),
            )
        except ClientError as error:
            raise self._error(error) from error

    def count_ids(self, namespace: str, ids: list[RowId]) -> int:
        """Return how many of some ids exist."""
        return self.count(namespace, filter={"id__in": ids})

    def count(self, namespace: str, *, filter: Mapping[str, Any] | None) -> int:
        """Return how many rows match."""
        try:
            return self._client.count(namespace=namespace, filter=filter)
        except ClientError as error:
            raise self._error(error) from error

    def rows(self, namespace: str, *, filter: Mapping[str, Any] | None, page_rows: int) -> Iterator[Row]:
        """Yield rows in id order."""
        try:
            for record in self._client.scroll(namespace=namespace, filter=filter, page_rows=page_rows):
                yield Row(record.id, record.values, orjson.dumps(record.metadata))
        except ClientError as error:
            raise self._error(error) from error

    def close(self) -> None:
        """Let go of connections."""
        self._client.close()
        self._first.close()

    def _error(self, error: ClientError) -> PlaceError:
        if isinstance(error, NotAuthenticated):
            return PlaceError(f"{self.name} has API keys: give one with --api-key or {API_KEY_VARIABLE}")
        return PlaceError(f"{self.name} answered: {error}")


class DataDirPlace:
    """The data dir of MLVDB_DATA_DIR, in this process; what the node's background processes do is done here."""

    writers = 1

    def __init__(self) -> None:
        _migrate()
        self.name = f"the data dir {settings.NODE_FILES.root}"
        self._due: str | None = None
        self._processor = query_processor_for(self._note_due)

    def known(self, namespace: str) -> Known | None:
        """Return what is known of a namespace, None when it does not exist."""
        try:
            details = self._processor.namespace_details().value
        except MLVectorDBError as error:
            raise self._error(error) from error
        return next((Known(one.dimension, one.metric, one.count) for one in details if one.name == namespace), None)

    def make(self, namespace: str, *, dimension: int, metric: str | None) -> None:
        """Make a namespace, or see that it has this dimension and metric."""
        try:
            self._processor.namespace_put(namespace, dimension=dimension, metric=metric)
        except MLVectorDBError as error:
            raise self._error(error) from error

    def write(self, namespace: str, batch: Batch) -> None:
        """Upsert rows, and checkpoint when the tail has become long."""
        metadata = [b"{}"] * len(batch.ids)
        try:
            if batch.metadata is not None:
                metadata = [
                    metadata_of(value, field=f"row {batch.start + place}") for place, value in enumerate(batch.metadata)
                ]
            rows = VectorBatch([key_of(row_id) for row_id in batch.ids], batch.values, metadata)
            try:
                self._processor.upsert_many(rows, namespace=namespace)
            except CheckpointBehind:
                # A tail that was left long: no checkpoint was due to anybody before this write.
                self._checkpoint_all()
                self._processor.upsert_many(rows, namespace=namespace)
            if self._due is not None:
                self._checkpoint(self._due)
        except MLVectorDBError as error:
            raise self._error(error) from error

    def count_ids(self, namespace: str, ids: list[RowId]) -> int:
        """Return how many of some ids exist."""
        return self.count(namespace, filter={"id__in": ids})

    def count(self, namespace: str, *, filter: Mapping[str, Any] | None) -> int:
        """Return how many rows match."""
        try:
            return self._processor.count(namespace=namespace, filter=_parsed(filter)).value
        except MLVectorDBError as error:
            raise self._error(error) from error

    def rows(self, namespace: str, *, filter: Mapping[str, Any] | None, page_rows: int) -> Iterator[Row]:
        """Yield rows in id order."""
        after: bytes | None = None
        try:
            condition = _parsed(filter)
            while True:
                page = self._processor.scroll(namespace=namespace, limit=page_rows, after=after, filter=condition).value
                for record in page.records:
                    assert record.values is not None
                    yield Row(id_of(record.key), record.values, record.metadata or b"{}")
                after = page.next_after
                if after is None:
                    return
        except MLVectorDBError as error:
            raise self._error(error) from error

    def close(self) -> None:
        """Nothing is kept open."""

    def _note_due(self, shard_uid: str) -> None:
        self._due = shard_uid

    def _checkpoint(self, shard_uid: str) -> None:
        from vectors.store.checkpoint import checkpoint_run
        from vectors.store.merging import merge_run

        self._due = None
        checkpoint_run(shard_uid, owner=f"transfer:{os.getpid()}")
        # Segments stay few; they are indexed by the node that will serve them.
        merge_run(shard_uid, owner=f"transfer:{os.getpid()}", tiers_alone=True)

    def _checkpoint_all(self) -> None:
        from vectors.models import ShardHead

        for uid in ShardHead.objects.values_list("uid", flat=True):
            self._checkpoint(uid)

    def _error(self, error: MLVectorDBError) -> PlaceError:
        field = f" (field {error.field})" if error.field else ""
        return PlaceError(f"{self.name}: {error.message}{field}")


def _parsed(filter: Mapping[str, Any] | None) -> Filter | None:
    return None if filter is None else filter_of(filter)


def _migrate() -> None:
    """Bring the data dir's database to the code's state: it may be new."""
    from django.core.management import call_command
    from django.db import connection
    from django.db.migrations.executor import MigrationExecutor

    executor = MigrationExecutor(connection)
    if executor.migration_plan(executor.loader.graph.leaf_nodes()):
        call_command("migrate", verbosity=0, interactive=False)
