"""The writes of the port over shards.

A write of rows: the namespace is settled in the registry, ids lead to slots and slots to shards, and each shard gets
its rows in one part, all at once. What a client did wrong is found before the first part leaves. Rows whose slots are
closed by a move, and parts that a shard refuses because its slots have changed, wait for a newer picture and are routed
again, so a client sees a pause and no error; so do parts whose shard is given to another node meanwhile. Rows with
generated ids whose shard turned out to be down get other ids: it is sure that nobody has them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from django.conf import settings

from cluster.query_processor.errors import AnswerVoid, NodeChanging, ShardUnavailable, SlotsMoving
from cluster.query_processor.means import means
from cluster.query_processor.sharded.delivery import Copies, Delivery, delivered, delivery, waiting
from cluster.query_processor.sharded.names import known_namespace
from cluster.query_processor.sharded.outcomes import Ledger, Outcome, Status
from cluster.query_processor.sharded.picture import FIRST_PAUSE_S, LONGEST_PAUSE_S, Picture
from cluster.query_processor.sharded.routing import Part, drawn_keys, is_dead, owning, parts_of, some_of, why_dead
from cluster.query_processor.sharded.scatter import combined, failed_account, shard_unavailable
from cluster.services.namespaces import namespace_ensure
from cluster.sharding.view import ShardMember
from vectors.engine.filters import Filter
from vectors.engine.ids import slots_of
from vectors.engine.namespace import NamespaceSpec
from vectors.errors import MLVectorDBError, NamespaceNotFound, SlotsClosed, StaleScope, Unavailable
from vectors.query_processor import RequestOptions, ShardAccount, VectorBatch, WriteResult
from vectors.query_processor.translation import unknown_vector, with_generated_keys

_NODE_PAUSE_S = 0.2

_NO_ROWS = np.empty(0, dtype=np.int64)


def upsert(batch: VectorBatch, *, namespace: str, options: RequestOptions, copies: Copies) -> WriteResult:
    """Write rows, all or nothing per shard; of a repeated id the last wins."""
    return _Upsert(batch, namespace, options, copies).result()


def patch(key: bytes, *, metadata: bytes, namespace: str, options: RequestOptions, copies: Copies) -> WriteResult:
    """Merge metadata into a row."""
    return _Patch(key, metadata, namespace, options, copies).result()


def delete(keys: Sequence[bytes], *, namespace: str, options: RequestOptions, copies: Copies) -> WriteResult:
    """Delete rows on the shards that their ids lead to."""
    return _Delete(list(dict.fromkeys(keys)), namespace, options, copies).result()


def delete_by_filter(filter: Filter, *, namespace: str, options: RequestOptions, copies: Copies) -> WriteResult:
    """Delete the rows that match, on every shard."""
    return _DeleteByFilter(filter, namespace, options, copies).result()


class _Writing:
    """A write of rows on its way: which of them are still to be written, and what became of the others."""

    operation: str

    def __init__(self, keys: list[bytes], namespace: str, options: RequestOptions, copies: Copies) -> None:
        self.keys = keys
        self.namespace = namespace
        self.options = options
        self.deadline = time.monotonic() + (options.timeout_s or settings.MLVDB_WRITE_TIMEOUT_S)
        self.shared = means()
        self.copies = copies
        self.ledger = Ledger(self.keys)
        self._changing: dict[str, tuple[int, NodeChanging]] = {}
        self._void: set[int] = set()
        """Rows that a node has written which was the shard's no more: they may be there, under the ids they have."""

    def arguments(self, rows: np.ndarray) -> Mapping[str, Any]:
        """Return what a shard is told of some rows."""
        raise NotImplementedError

    def spec(self, picture: Picture) -> NamespaceSpec:
        """Return the namespace; raise NamespaceNotFound."""
        return known_namespace(picture, self.namespace)

    def prepare(self, picture: Picture) -> None:
        """Do what is to be done before the first part leaves."""

    def settle(self, picture: Picture, item: Delivery, outcome: Outcome) -> np.ndarray:
        """Take in what became of a part; return those of its rows that are to be routed again."""
        if isinstance(outcome.error, (SlotsClosed, StaleScope)):
            return item.part.rows
        if isinstance(outcome.error, AnswerVoid):
            self._void.update(item.part.rows.tolist())
        if isinstance(outcome.error, NodeChanging):
            self._changing[item.member.uid] = (item.member.node_epoch, outcome.error)
            return item.part.rows
        self._note(item.member, outcome, item.part.rows)
        return _NO_ROWS

    def answer(self) -> WriteResult:
        """Return the answer, or raise what became of the write."""
        return self.ledger.result(count=len(self.keys))

    def result(self) -> WriteResult:
        """Write all rows. Raise PartialWrite, and the error of the only shard there is."""
        picture = self.picture()
        spec = self.spec(picture)
        self.prepare(picture)
        members = [part.member for part in parts_of(picture.sharding, slots_of(self.keys))]
        with waiting(picture, members, self.shared):
            self._run(picture, spec)
        return self.answer()

    def picture(self) -> Picture:
        """Return the shards as of now; a write has no state to wait for."""
        return Picture.now(replace(self.options, min_seq={}), self.deadline)

    def _run(self, picture: Picture, spec: NamespaceSpec) -> None:
        pending = np.arange(len(self.keys))
        pause_s = FIRST_PAUSE_S
        while True:
            slots = slots_of(self.keys)
            closed = picture.sharding.closed
            is_closed = np.zeros(len(pending), dtype=bool) if closed is None else closed.has(slots[pending])
            now = pending[~is_closed]
            parts = parts_of(picture.sharding, slots[now], now)
            again = [pending[is_closed], *(part.rows for part in parts if self._is_changing(part.member))]
            deliveries = [
                delivery(picture, part, spec, self.operation, namespace=self.namespace, **self.arguments(part.rows))
                for part in parts
                if not self._is_changing(part.member)
            ]
            for item, outcome in delivered(picture, deliveries, self.shared, self.copies):
                again.append(self.settle(picture, item, outcome))
            pending = np.sort(np.concatenate(again))
            if not len(pending):
                return
            if self.deadline - time.monotonic() <= pause_s:
                self._give_up(picture, pending, None)
                return
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            try:
                picture = self.picture()
                spec = self.spec(picture)
            except MLVectorDBError as error:
                # The namespace is another one by now, say. Other rows may be written: it is these that are not.
                self._give_up(picture, pending, error)
                return

    def _is_changing(self, member: ShardMember) -> bool:
        """Whether a shard is still at the node that was found not to be its primary any more."""
        known = self._changing.get(member.uid)
        is_stuck = member.failover.is_under_way and not member.failover.is_waited_for
        return known is not None and known[0] == member.node_epoch and not is_stuck

    def _give_up(self, picture: Picture, pending: np.ndarray, why: MLVectorDBError | None) -> None:
        slots = slots_of(self.keys)
        for part in parts_of(picture.sharding, slots[pending], pending):
            error = why or SlotsMoving(
                f"slots of shard {part.member.label} are being moved: try again soon",
                detail={"shard": part.member.label, "slots": np.unique(slots[part.rows]).tolist()[:20]},
                retry_after_s=1,
            )
            if part.member.uid in self._changing:
                error = self._changing[part.member.uid][1]
            self._note(part.member, Outcome(Status.REFUSED, error), part.rows)

    def _note(self, member: ShardMember, outcome: Outcome, rows: np.ndarray) -> None:
        """Note what became of rows; one that was refused now may have been written before."""
        if outcome.status is Status.REFUSED and not self._void.isdisjoint(rows.tolist()):
            outcome = Outcome(Status.UNKNOWN, outcome.error)
        self.ledger.note(member, outcome, rows)


class _Upsert(_Writing):
    operation = "upsert_many"

    def __init__(self, batch: VectorBatch, namespace: str, options: RequestOptions, copies: Copies) -> None:
        super().__init__([], namespace, options, copies)
        self._batch = batch
        # With an idempotency key they are the same whenever the request is repeated, wherever that leads.
        self._is_drawn = np.array([key is None and options.idempotency_key is None for key in batch.keys], dtype=bool)
        self._avoided: frozenset[str] = frozenset()

    def spec(self, picture: Picture) -> NamespaceSpec:
        return namespace_ensure(self.namespace, dimension=int(self._batch.values.shape[1]))

    def arguments(self, rows: np.ndarray) -> Mapping[str, Any]:
        return {"batch": some_of(self._batch, self.keys, rows)}

    def prepare(self, picture: Picture) -> None:
        # In place: the ledger has them too.
        self.keys[:] = with_generated_keys(self._batch.keys, self.namespace, self.options.idempotency_key)
        if self._is_drawn.any():
            self._draw(picture, np.flatnonzero(self._is_drawn))

    def settle(self, picture: Picture, item: Delivery, outcome: Outcome) -> np.ndarray:
        rows = item.part.rows
        if isinstance(outcome.error, NamespaceNotFound):
            # Dropped between the look and the append: the next look makes it anew.
            return rows
        drawn = rows[self._is_drawn[rows]]
        if not self._void.isdisjoint(drawn.tolist()):
            return super().settle(picture, item, outcome)
        if outcome.status is Status.REFUSED and isinstance(outcome.error, Unavailable) and len(drawn):
            # Nobody has these ids: others, on other shards, serve as well.
            self._avoided |= {item.member.uid}
            try:
                self._draw(picture, drawn)
            except ShardUnavailable:
                return super().settle(picture, item, outcome)
            rest = rows[~self._is_drawn[rows]]
            if not len(rest):
                return drawn
            others = replace(item, part=Part(item.member, rest))
            return np.concatenate([drawn, super().settle(picture, others, outcome)])
        return super().settle(picture, item, outcome)

    def _draw(self, picture: Picture, rows: np.ndarray) -> None:
        turn = self.shared.draws(len(rows))
        keys = drawn_keys(picture.sharding, len(rows), turn=turn, avoided=self._avoided)
        for row, key in zip(rows.tolist(), keys, strict=True):
            self.keys[row] = key


class _Patch(_Writing):
    operation = "patch"

    def __init__(self, key: bytes, metadata: bytes, namespace: str, options: RequestOptions, copies: Copies) -> None:
        super().__init__([key], namespace, options, copies)
        self._metadata = metadata

    def arguments(self, rows: np.ndarray) -> Mapping[str, Any]:
        return {"key": self.keys[0], "metadata": self._metadata}

    def settle(self, picture: Picture, item: Delivery, outcome: Outcome) -> np.ndarray:
        if isinstance(outcome.error, NamespaceNotFound):
            # The shard has not heard of the namespace, so it has no row of it.
            raise unknown_vector(self.keys[0])
        return super().settle(picture, item, outcome)


class _Delete(_Writing):
    operation = "delete"

    def arguments(self, rows: np.ndarray) -> Mapping[str, Any]:
        return {"keys": [self.keys[row] for row in rows.tolist()]}

    def settle(self, picture: Picture, item: Delivery, outcome: Outcome) -> np.ndarray:
        return super().settle(picture, item, nothing_there(outcome))

    def answer(self) -> WriteResult:
        return self.ledger.result(count=self.ledger.count)


class _DeleteByFilter:
    """A delete by filter: every shard resolves it for the rows that it owns.

    Where slots have changed under it, it is done again on all shards by a newer picture: what is deleted already stays
    so, and is counted. Where a shard cannot be asked nothing is begun, unless the client accepts that its rows stay.
    """

    def __init__(self, filter: Filter, namespace: str, options: RequestOptions, copies: Copies) -> None:
        self._filter = filter
        self._namespace = namespace
        self._options = replace(options, min_seq={})
        self._deadline = time.monotonic() + (options.timeout_s or settings.MLVDB_WRITE_TIMEOUT_S)
        self._shared = means()
        self._copies = copies
        self._ledger = Ledger(())
        self._accounts: list[ShardAccount] = []

    def result(self) -> WriteResult:
        """Delete on all shards."""
        picture = Picture.now(self._options, self._deadline)
        spec = known_namespace(picture, self._namespace)
        members = owning(picture.sharding)
        down = {member.uid: shard_unavailable(member, why_dead(member)) for member in members if is_dead(member)}
        if down and (not self._options.partial or len(down) == len(members)):
            raise combined(dict(down), members)
        with waiting(picture, members, self._shared):
            self._run(picture, spec)
        return replace(self._ledger.result(count=self._ledger.count), shards=self._accounts)

    def _run(self, picture: Picture, spec: NamespaceSpec) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            found = delivered(
                picture,
                [
                    delivery(
                        picture, Part(member, _NO_ROWS), spec, "delete", namespace=self._namespace, filter=self._filter
                    )
                    for member in owning(picture.sharding)
                ],
                self._shared,
                self._copies,
            )
            found = [(item, nothing_there(outcome)) for item, outcome in found]
            is_last = self._deadline - time.monotonic() <= pause_s or not any(
                isinstance(outcome.error, (SlotsClosed, StaleScope, NodeChanging)) for _, outcome in found
            )
            self._note(found, is_last=is_last)
            if is_last:
                return
            if any(isinstance(outcome.error, NodeChanging) for _, outcome in found):
                # That takes seconds, and each time all shards delete again.
                pause_s = min(_NODE_PAUSE_S, max(0.0, self._deadline - time.monotonic()))
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            picture = Picture.now(self._options, self._deadline)
            spec = known_namespace(picture, self._namespace)

    def _note(self, found: Sequence[tuple[Delivery, Outcome]], *, is_last: bool) -> None:
        """Take in a round: what was deleted in any, and what went wrong in the last."""
        is_partial = self._options.partial and any(outcome.status is Status.COMMITTED for _, outcome in found)
        self._accounts = []
        for item, outcome in found:
            is_left_out = is_partial and isinstance(outcome.error, Unavailable)
            if outcome.status is Status.COMMITTED or (is_last and not is_left_out):
                self._ledger.note(item.member, outcome, item.part.rows)
            if self._options.partial:
                code = None if outcome.error is None else outcome.error.code
                account = ShardAccount(item.member.label, "primary")
                self._accounts.append(account if code is None else failed_account(item.member, code))


def nothing_there(outcome: Outcome) -> Outcome:
    """Return the outcome of a deletion; a shard that has not heard of the namespace had nothing to delete."""
    return Outcome(Status.COMMITTED) if isinstance(outcome.error, NamespaceNotFound) else outcome
