"""Logs that no shard copy has written: entries made by hand, as a primary elsewhere would have."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np
import orjson

from tests.engine.oracle import Oracle
from vectors.engine import ids
from vectors.engine.operations import Delete, NamespaceDrop, NamespacePut, Operation, StartTerm, Upsert, encode
from vectors.models import ShardHead
from vectors.store.log import START, Entry, Position, checksum

DIMENSION = 3


@dataclass
class PaperLog:
    """A log of entries in memory, its first from seq 1; `fork` gives another that begins like it."""

    entries: list[Entry] = field(default_factory=list)
    term: int = 1

    @property
    def position(self) -> Position:
        return self.at(len(self.entries))

    def at(self, seq: int) -> Position:
        return Position(self.entries[seq - 1].term, seq) if seq else START

    def after(self, seq: int, through: int | None = None) -> list[Entry]:
        return self.entries[seq:through]

    def fork(self, seq: int, term: int) -> PaperLog:
        """Return the log of a primary of `term` whose copy ended at `seq`."""
        other = PaperLog(self.entries[:seq], self.at(seq).term)
        other.start_term(term)
        return other

    def add(self, operation: Operation, namespace: str = "") -> Entry:
        seq, payload = len(self.entries) + 1, encode(operation)
        crc32 = checksum(seq, self.term, operation.kind, namespace, zlib.crc32(payload))
        self.entries.append(Entry(seq, self.term, namespace, int(operation.kind), payload, crc32))
        return self.entries[-1]

    def start_term(self, term: int, node: str = "n" * 32) -> None:
        operation = StartTerm(node, self.position.term)
        self.term = term
        self.add(operation)

    def put(self, uid: str, name: str, *, dimension: int = DIMENSION, recall: float = 0.99) -> None:
        self.add(NamespacePut(name, dimension, "cosine", recall), uid)

    def drop(self, uid: str) -> None:
        self.add(NamespaceDrop(), uid)

    def upsert(self, uid: str, start: int, count: int = 1, *, dimension: int = DIMENSION) -> None:
        seed = [start, count, len(self.entries), self.term]
        values = np.random.default_rng(seed).standard_normal((count, dimension), dtype=np.float32)
        keys = [ids.key_of(number) for number in range(start, start + count)]
        self.add(Upsert(keys, values, [orjson.dumps({"n": number}) for number in range(count)]), uid)

    def delete(self, uid: str, start: int, count: int = 1) -> None:
        self.add(Delete([ids.key_of(number) for number in range(start, start + count)]), uid)

    def oracle(self) -> Oracle:
        """Return the truth after all entries."""
        oracle = Oracle()
        dropped: set[str] = set()
        for entry in self.entries:
            operation = entry.operation()
            if isinstance(operation, NamespaceDrop):
                dropped.add(entry.namespace)
            if not (isinstance(operation, NamespacePut) and entry.namespace in dropped):
                oracle.apply(entry.seq, entry.namespace, operation)
        return oracle


def new_copy(label: str = "copy", **fields: object) -> ShardHead:
    """Make an empty copy of a shard whose primary is elsewhere."""
    return ShardHead.objects.create(label=label, is_primary=False, **fields)
