"""The engine of one shard copy: its namespaces, and the position up to which the log has been applied.

Engine = segments + operations in seq order. Applying an operation again changes nothing; a gap is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from vectors.engine.filters import ColumnBudget
from vectors.engine.namespace import NamespaceEngine, NamespaceSpec, NamespaceView
from vectors.engine.operations import (
    ClearSlots,
    Delete,
    NamespaceDrop,
    NamespacePut,
    Operation,
    Patch,
    SetSlots,
    StartTerm,
    Upsert,
)
from vectors.engine.parts import Part
from vectors.engine.slots import SlotSet
from vectors.errors import LogGap

_RESULTS_KEPT = 8192


class ShardEngine:
    """Namespaces by uid and name, applied up to (`term`, `seq`). Its lock guards the mutable state; views need none.

    `slots_epoch` is the epoch of the newest `SetSlots` applied, 0 where there was none. Whoever looks at rows for a
    request that was planned at an epoch compares afterwards: what was there before a newer change, was there in time.
    """

    def __init__(
        self, *, term: int = 0, seq: int = 0, slots_epoch: int = 0, budget: ColumnBudget | None = None
    ) -> None:
        self.term, self.seq = term, seq
        self.slots_epoch = slots_epoch
        self.lock = threading.RLock()
        self.budget = budget
        self._by_uid: dict[str, NamespaceEngine] = {}
        self._by_name: dict[str, str] = {}
        self._dropped: set[str] = set()
        self._results: dict[int, int] = {}

    def mount(self, namespace: NamespaceEngine) -> None:
        """Add a namespace as a manifest describes it."""
        self._by_uid[namespace.spec.uid] = namespace
        self._by_name[namespace.spec.name] = namespace.spec.uid

    def apply(self, *, seq: int, term: int, namespace: str, operation: Operation) -> bool:
        """Apply the operation of log entry (term, seq); return False when it was applied before.

        Raise LogGap when it is not the next one, or is of another history than what was applied: a term that follows
        another begins with an entry that names the one it follows.
        """
        with self.lock:
            if seq <= self.seq:
                return False
            if seq != self.seq + 1:
                raise LogGap(f"entry {seq} does not follow {self.seq}", detail={"seq": seq, "applied": self.seq})
            if term != self.term and self.seq and not _follows(operation, term, self.term):
                raise LogGap(
                    f"entry ({term}, {seq}) does not follow ({self.term}, {self.seq})",
                    detail={"seq": seq, "applied": self.seq},
                )
            self._remember(seq, self._run(seq, namespace, operation))
            self.seq, self.term = seq, term
            return True

    def result(self, seq: int) -> int | None:
        """Return how many rows the operation at `seq` changed; None when that was too long ago."""
        return self._results.get(seq)

    def adopt_results(self, older: ShardEngine) -> None:
        """Take over the results of another engine of the same log, which this one replaces."""
        self._results = older._results | self._results

    def names(self) -> list[str]:
        """Return the names of the namespaces, sorted."""
        with self.lock:
            return sorted(self._by_name)

    def spec(self, name: str) -> NamespaceSpec | None:
        """Return what is known of a namespace."""
        uid = self._by_name.get(name)
        namespace = self._by_uid.get(uid) if uid is not None else None
        return None if namespace is None else namespace.spec

    def view(self, name: str) -> NamespaceView | None:
        """Return the present state of a namespace, None when there is no such name."""
        with self.lock:
            uid = self._by_name.get(name)
            return None if uid is None else self._by_uid[uid].view()

    def view_and_places(
        self, name: str, keys: Sequence[bytes], *, slots: SlotSet | None = None
    ) -> tuple[NamespaceView | None, list[tuple[Part, int] | None]]:
        """Return the present state of a namespace and the places of keys in that same state, both in `slots` only."""
        with self.lock:
            view, places = self.view(name), self.find_many(name, keys, slots=slots)
        return view if view is None or slots is None else view.only(slots), places

    def spec_and_places(
        self, name: str, keys: Sequence[bytes], *, slots: SlotSet | None = None
    ) -> tuple[NamespaceSpec | None, list[tuple[Part, int] | None]]:
        """Return what is known of a namespace, and the places of keys as `find_many` does, of one state."""
        with self.lock:
            return self.spec(name), self.find_many(name, keys, slots=slots)

    def find_many(
        self, name: str, keys: Sequence[bytes], *, slots: SlotSet | None = None
    ) -> list[tuple[Part, int] | None]:
        """Return part and row of each living key of a namespace; with `slots`, of those alone that lie in them."""
        with self.lock:
            uid = self._by_name.get(name)
            return [None] * len(keys) if uid is None else self._by_uid[uid].find_many(keys, slots=slots)

    def namespaces(self) -> Iterable[NamespaceEngine]:
        """Return the namespaces, sorted by name."""
        with self.lock:
            return [self._by_uid[self._by_name[name]] for name in sorted(self._by_name)]

    @property
    def tail_bytes(self) -> int:
        """Bytes of all tails in this process."""
        with self.lock:
            return sum(namespace.tail_bytes for namespace in self._by_uid.values())

    @property
    def mapped_bytes(self) -> int:
        """Bytes of all mapped segments."""
        with self.lock:
            return sum(namespace.mapped_bytes for namespace in self._by_uid.values())

    def _run(self, seq: int, uid: str, operation: Operation) -> int:
        if isinstance(operation, NamespacePut):
            return self._put(uid, operation)
        if isinstance(operation, NamespaceDrop):
            return self._drop(uid)
        if isinstance(operation, StartTerm):
            return 0
        if isinstance(operation, SetSlots):
            self.slots_epoch = operation.epoch
            return 0
        if isinstance(operation, ClearSlots):
            slots = SlotSet(operation.slots)
            return sum(space.clear(slots) for space in self._by_uid.values())
        namespace = self._by_uid.get(uid)
        if namespace is None:
            return 0
        if isinstance(operation, Upsert):
            return namespace.upsert(operation, seq=seq)
        if isinstance(operation, Delete):
            return namespace.delete(operation.keys, resolved_at=operation.resolved_at)
        assert isinstance(operation, Patch)
        return namespace.patch(operation, seq=seq)

    def _put(self, uid: str, put: NamespacePut) -> int:
        if uid in self._dropped:
            return 0
        known = self._by_uid.get(uid)
        if known is None:
            self.mount(NamespaceEngine(NamespaceSpec.of(uid, put), budget=self.budget))
        else:
            known.change(NamespaceSpec.of(uid, put))
        return 0

    def _drop(self, uid: str) -> int:
        namespace = self._by_uid.pop(uid, None)
        self._dropped.add(uid)
        if namespace is None:
            return 0
        del self._by_name[namespace.spec.name]
        return namespace.view().count

    def _remember(self, seq: int, changed: int) -> None:
        self._results[seq] = changed
        if len(self._results) > _RESULTS_KEPT:
            del self._results[next(iter(self._results))]


def _follows(operation: Operation, term: int, before: int) -> bool:
    return isinstance(operation, StartTerm) and operation.after == before < term
