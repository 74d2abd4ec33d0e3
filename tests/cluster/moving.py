"""Shards of this node with rows, moves between them, and what must be true of them afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from cluster.models import Move, MoveStep, Shard, Topology
from cluster.moves import control, row, running
from cluster.query_processor import ClusterQueryProcessor
from cluster.services.sharding import sharding_enable
from cluster.sharding.table import SlotTable
from cluster.states import MovePhase
from cluster.topology import topology_forget
from vectors.engine import ids
from vectors.engine.slots import SlotSet
from vectors.models import MoveCursor, Pin, ShardHead
from vectors.query_processor import LocalQueryProcessor, VectorBatch
from vectors.query_processor.moving import MovingCopy

ROWS = 300
NAMESPACE = "things"
CLOSED = (MovePhase.CLOSING, MovePhase.SWITCHING)


class Crash(BaseException):
    """What a process that ends in the middle raises: nobody handles it."""


class AllDue:
    """Sweeps in which everything is due."""

    def next(self) -> None:
        """Begin the next."""

    def is_due(self, attempts: int) -> bool:
        """Whether it is: always."""
        return True


@contextmanager
def shards_with_rows(monkeypatch: pytest.MonkeyPatch, *, shards: int = 2) -> Iterator[ClusterQueryProcessor]:
    """Have shards of this node with rows; what the task does, `run` does."""
    for module in (
        "cluster.moves.control",
        "cluster.moves.running",
        "cluster.services.sharding_assignments",
        "cluster.replication.knocks",
    ):
        monkeypatch.setattr(f"{module}.publish", lambda *_task: True)
    monkeypatch.setattr(running, "_sweeps", AllDue())
    sharding_enable(strategy="hash", shards=shards, actor="test")
    topology_forget()
    processor = ClusterQueryProcessor()
    write(processor, range(ROWS))
    yield processor
    topology_forget()


def write(
    processor: ClusterQueryProcessor, numbers: Iterable[int], *, value: float = 0.0, namespace: str = NAMESPACE
) -> None:
    """Write rows whose ids are numbers."""
    numbers = list(numbers)
    values = np.array([[number, value] for number in numbers], dtype=np.float32)
    keys = [ids.key_of(number) for number in numbers]
    processor.upsert_many(VectorBatch(keys, values, [b"{}"] * len(keys)), namespace=namespace)


def delete(processor: ClusterQueryProcessor, numbers: Iterable[int]) -> None:
    """Delete rows."""
    processor.delete(keys=[ids.key_of(number) for number in numbers], namespace=NAMESPACE)


def contents(processor: ClusterQueryProcessor, namespace: str = NAMESPACE) -> dict[int, float]:
    """Return what a listing answers; a row that it answers twice is a failure."""
    page = processor.scroll(namespace=namespace, limit=10_000).value
    numbers = [int(ids.id_of(record.key)) for record in page.records]
    assert len(numbers) == len(set(numbers)), "a row is answered twice"
    assert processor.count(namespace=namespace).value == len(numbers)
    return {int(ids.id_of(record.key)): float(record.values[1]) for record in page.records}


def shard(label: str) -> Shard:
    """Return a shard's row."""
    return Shard.objects.get(label=label)


def held(label: str) -> set[int]:
    """Return the rows that a shard's copy has, whoever owns them."""
    head = ShardHead.objects.get(uid=shard(label).uid)
    page = LocalQueryProcessor(head.pk).scroll(namespace=NAMESPACE, limit=10_000).value
    return {int(ids.id_of(record.key)) for record in page.records}


def owned(label: str) -> SlotSet:
    """Return the slots of a shard by the registry."""
    return SlotTable.of_bytes(bytes(Topology.objects.get().slots or b"")).owned_by(shard(label).pk)


def closed_slots() -> bool:
    """Whether a write may have to wait for the move."""
    return MoveStep.objects.filter(phase__in=CLOSED).exists()


def settled() -> None:
    """Assert that no copy has a row of a slot that it does not own, and that nothing is left of any move."""
    for each in Shard.objects.exclude(state="removed"):
        slots = owned(each.label)
        assert all(ids.slot_of(ids.key_of(number)) in slots for number in held(each.label)), each.label
        assert not each.has_foreign, each.label
        now = MovingCopy(ShardHead.objects.get(uid=each.uid).pk).slots()
        assert now is None or now.writable == slots, each.label
    assert not MoveCursor.objects.exists()
    assert not Pin.objects.exists()


def redistribute(source: str = "shard_0", target: str = "shard_1") -> Move:
    """Ask for all of one shard to go to another."""
    return control.move_request(Move.Kind.REDISTRIBUTE, source=shard(source), target=shard(target), actor="test")


def run() -> None:
    """Do what the task does."""
    running.moves_run()


def phase(move: Move) -> str:
    """Return the phase of a move as of now."""
    return Move.objects.get(pk=move.pk).phase


def between_pages(monkeypatch: pytest.MonkeyPatch, do: Callable[[int], object]) -> None:
    """Have something done after each page of rows or log that a move takes, with the number of the page."""
    real = row.StepRow.count
    pages = 0

    def count(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal pages
        real(self, *args, **kwargs)
        pages += 1
        do(pages)

    monkeypatch.setattr(row.StepRow, "count", count)


def phases_seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of the phases that steps are brought into, as they are."""
    seen: list[str] = []
    real = row.StepRow._keep

    def keep(self: Any, fields: Any) -> None:
        real(self, fields)
        seen.append(self.step.phase)

    monkeypatch.setattr(row.StepRow, "_keep", keep)
    return seen
