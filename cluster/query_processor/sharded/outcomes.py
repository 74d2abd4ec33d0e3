"""What became of a write, shard by shard, and the one answer or error that it makes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from cluster.query_processor.errors import PartialWrite, SlotsMoving
from cluster.query_processor.sharded.scatter import shard_unavailable
from cluster.sharding.view import ShardMember
from cluster.transport.errors import PeerError, PeerRefused, PeerSilent
from vectors.engine.ids import id_of
from vectors.errors import MLVectorDBError, NotEnoughCopies, StorageError
from vectors.query_processor import WriteResult
from vectors.tokens import parse_token


class Status(StrEnum):
    """Whether a shard has a write: for sure, for sure not, or nobody can tell."""

    COMMITTED = "committed"
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one shard's part. `error` is there unless it was committed at its level; `seq` is its token."""

    status: Status
    error: MLVectorDBError | None = None
    seq: str = ""
    position: tuple[str, int, int] | None = None
    count: int = 0


def committed(result: WriteResult, *, epoch: int) -> Outcome:
    """Return the outcome of a write that a shard has answered, its token under the coordinator's epoch."""
    position = next(iter(result.positions.values()), None)
    seq = next(iter(result.seq.values()), "")
    return Outcome(Status.COMMITTED, None, _under(seq, epoch), position, result.count)


def failed(error: MLVectorDBError, *, epoch: int) -> Outcome:
    """Return the outcome of a write that ended with an error: this node's, or what a shard's node has answered."""
    if isinstance(error, NotEnoughCopies):
        # Its primary has it.
        seq = next(iter(error.detail.get("seq", {}).values()), "")
        return Outcome(Status.COMMITTED, error, _under(seq, epoch))
    return Outcome(Status.UNKNOWN if _may_be_done(error) else Status.REFUSED, error)


@dataclass(slots=True)
class Ledger:
    """The outcomes of a whole write, by shard; `keys` are those of the request, in its order."""

    keys: Sequence[bytes]
    shards: dict[str, list[Outcome]] = field(default_factory=dict)
    failed_rows: list[int] = field(default_factory=list)
    _members: dict[str, ShardMember] = field(default_factory=dict)

    def note(self, member: ShardMember, outcome: Outcome, rows: np.ndarray) -> None:
        """Note what became of some rows."""
        self.shards.setdefault(member.label, []).append(outcome)
        self._members[member.label] = member
        if outcome.status is not Status.COMMITTED:
            self.failed_rows.extend(rows.tolist())

    @property
    def count(self) -> int:
        """Rows that were changed, where that is what an answer says."""
        return sum(outcome.count for outcomes in self.shards.values() for outcome in outcomes)

    def result(self, *, count: int) -> WriteResult:
        """Return the answer of a write that every shard has committed at its level; raise what it is otherwise.

        The error of the only shard there was is raised as it is, when it says that nothing was written; so are closed
        slots where nothing else was. One of the way there is ShardUnavailable, as it is for a read.
        """
        seq = {label: token for label, outcomes in self.shards.items() if (token := _newest(outcomes))}
        every = [outcome for outcomes in self.shards.values() for outcome in outcomes]
        lacking = [outcome for outcome in every if outcome.status is not Status.COMMITTED]
        if lacking:
            first = lacking[0].error
            is_lone = len(every) == 1 and every[0].status is Status.REFUSED
            if is_lone and isinstance(first, PeerError):
                [member] = self._members.values()
                first = shard_unavailable(member, first.message)
            if first is not None and (is_lone or all(isinstance(outcome.error, SlotsMoving) for outcome in every)):
                raise self._with_ids(first)
            raise self._partial(lacking)
        below = [outcome.error for outcome in every if outcome.error is not None]
        if below:
            below[0].detail |= {"ids": [id_of(key) for key in self.keys], "seq": seq}
            raise below[0]
        positions = {
            label: max(placed, key=lambda place: place[1:])
            for label, outcomes in self.shards.items()
            if (placed := [outcome.position for outcome in outcomes if outcome.position is not None])
        }
        return WriteResult(self.keys, count, seq, positions)

    def _partial(self, lacking: Sequence[Outcome]) -> PartialWrite:
        labels = [label for label, outcomes in self.shards.items() if any(item in lacking for item in outcomes)]
        rows = sorted(set(self.failed_rows))
        waits = [outcome.error.retry_after_s for outcome in lacking if outcome.error is not None]
        return PartialWrite(
            f"{', '.join(labels)} of {len(self.shards)} shards did not say that the write is there: repeat it by its"
            " ids",
            detail={
                "ids": [id_of(key) for key in self.keys],
                "failed_ids": [id_of(self.keys[row]) for row in rows],
                "shards": {label: _account(outcomes) for label, outcomes in self.shards.items()},
            },
            retry_after_s=max([1.0, *(wait for wait in waits if wait is not None)]),
        )

    def _with_ids(self, error: MLVectorDBError) -> MLVectorDBError:
        if error.transient and self.keys:
            error.detail.setdefault("ids", [id_of(key) for key in self.keys])
        return error


def _account(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Return what to say of one shard: the worst that became of its rows."""
    outcomes = list(outcomes)
    order = (Status.COMMITTED, Status.REFUSED, Status.UNKNOWN)
    worst = max(outcomes, key=lambda outcome: (order.index(outcome.status), outcome.error is not None))
    account: dict[str, Any] = {"status": worst.status.value}
    token = _newest(outcomes)
    if token:
        account["seq"] = token
    if worst.error is not None:
        account |= {"code": worst.error.code, "message": worst.error.message[:300]}
    return account


def _newest(outcomes: Iterable[Outcome]) -> str:
    tokens = [parse_token(outcome.seq) for outcome in outcomes if outcome.seq]
    return str(max(tokens, key=lambda token: (token.term, token.seq))) if tokens else ""


def _under(seq: str, epoch: int) -> str:
    return str(parse_token(seq)._replace(epoch=epoch)) if seq else ""


def _may_be_done(error: MLVectorDBError) -> bool:
    """Whether a write may be in the log although it ended with this error."""
    if isinstance(error, PeerRefused):
        return error.may_be_done
    if isinstance(error, PeerSilent):
        return error.waited
    return error.code in _OPEN or isinstance(error, StorageError)


_OPEN = frozenset({"peer_lost", "peer_garbled", "internal_error"})
