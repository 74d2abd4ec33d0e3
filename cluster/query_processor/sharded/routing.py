"""Rows to shards: ids → slots → owners in one step for all rows of a request, and ids drawn where they can be written.

A generated id is drawn so that its slot lies on a shard that is not known to be down: for `hash` any slot of these
shards is as likely as the next, for `round_robin` the shards take turns. So a shard that is down is left out of the
distribution without a single row in a place where its id does not lead.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cluster.query_processor.errors import ShardUnavailable
from cluster.sharding.view import ShardingView, ShardMember
from cluster.states import PeerHealth
from vectors.engine.ids import uuid_keys_in
from vectors.query_processor import VectorBatch

ROUND_ROBIN = "round_robin"


class Part(NamedTuple):
    """What of a request is one shard's: the numbers of its rows, (n,) int64, in the order of the request."""

    member: ShardMember
    rows: np.ndarray


def is_dead(member: ShardMember) -> bool:
    """Whether a shard's node is known to be down, or nothing that it says counts: nobody waits to find out again."""
    return member.health is PeerHealth.DEAD or member.failover.is_under_way


def why_dead(member: ShardMember) -> str:
    """Return why nobody is asked at a shard for which `is_dead` holds."""
    if member.failover.is_waited_for:
        return "its node is down, and a copy is taking its place"
    return "its node is down" + (", and no copy could take its place yet" if member.failover.is_under_way else "")


def owning(sharding: ShardingView) -> list[ShardMember]:
    """Return the shards that own slots: whoever reads everything asks these, and needs no other."""
    return [member for member in sharding.members if member.slots]


def parts_of(sharding: ShardingView, slots: np.ndarray, rows: np.ndarray | None = None) -> list[Part]:
    """Return whose the rows with these slots (n,) are. `rows` are their numbers, 0 … n - 1 when not given."""
    owners = sharding.owners[slots]
    if rows is None:
        rows = np.arange(len(slots))
    if not len(owners):
        return []
    if (owners == owners[0]).all():
        return [Part(sharding.members[int(owners[0])], rows)]
    order = np.argsort(owners, kind="stable")
    ordered = owners[order]
    ends = np.flatnonzero(np.diff(ordered)) + 1
    return [Part(sharding.members[int(owners[chosen[0]])], rows[chosen]) for chosen in np.split(order, ends)]


def some_of(batch: VectorBatch, keys: Sequence[bytes], rows: np.ndarray) -> VectorBatch:
    """Return some rows of a batch, with their keys as they were settled."""
    if len(rows) == len(keys):
        return VectorBatch(keys, batch.values, batch.metadata)
    numbers = rows.tolist()
    return VectorBatch(
        [keys[number] for number in numbers], batch.values[rows], [batch.metadata[number] for number in numbers]
    )


def drawn_keys(sharding: ShardingView, count: int, *, turn: int, avoided: frozenset[str] = frozenset()) -> list[bytes]:
    """Return `count` new keys in slots of shards that can be written.

    `turn` is the number of the first row, counted over requests; `avoided` are uids of shards that have just been found
    to take nothing. Raise ShardUnavailable when no shard is left.
    """
    slots = _writable_slots(sharding, count, turn, avoided)
    return uuid_keys_in(slots, random_bytes=os.urandom(16 * count))


def _writable_slots(sharding: ShardingView, count: int, turn: int, avoided: frozenset[str]) -> np.ndarray:
    members = _writable(sharding, avoided)
    # What a move has closed for a moment is passed over where there is a choice: nobody has to wait for it.
    closed = sharding.closed
    choices = [member.slots.numbers if closed is None else (member.slots - closed).numbers for member in members]
    choices = [numbers for numbers in choices if len(numbers)] or [member.slots.numbers for member in members]
    chance = np.frombuffer(os.urandom(4 * count), dtype=np.uint32)
    if sharding.strategy != ROUND_ROBIN:
        every = np.concatenate(choices)
        return every[chance % len(every)]
    slots = np.empty(count, dtype=np.uint16)
    turns = (turn + np.arange(count)) % len(choices)
    for number, numbers in enumerate(choices):
        mine = turns == number
        slots[mine] = numbers[chance[mine] % len(numbers)]
    return slots


def _writable(sharding: ShardingView, avoided: frozenset[str]) -> list[ShardMember]:
    """Return the shards that new ids go to: those against which nothing speaks, or else those that may still answer."""
    members = [member for member in owning(sharding) if not is_dead(member) and member.uid not in avoided]
    if not members:
        raise ShardUnavailable(
            "no shard can be written",
            detail={"shards": {member.label: member.health.value for member in owning(sharding)}},
            retry_after_s=1,
        )
    staying = [member for member in members if member.state.is_target] or members
    return [member for member in staying if member.health.is_unobjectionable] or staying
