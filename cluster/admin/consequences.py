"""What a removal or a promotion means, said before it is done: members, quorums, who holds the head, what may be lost.

The numbers are those of this moment; the services judge again when they are asked, by the same rules.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.utils.safestring import SafeString

from cluster.admin.truth import copies_with_lag
from cluster.admin.wording import badge, position
from cluster.models import Replica
from cluster.replication import quorum
from cluster.replication.quorum import PRIMARY
from cluster.services.accession import name_of_former_primary
from cluster.states import CopyState, Membership, PeerHealth
from vectors.models import ShardHead


@dataclass(frozen=True, slots=True)
class CopyLine:
    """One copy in the table of a shard; `holds_head` is None where nobody knows."""

    name: str
    membership: SafeString
    condition: SafeString | str
    at: str
    holds_head: bool | None
    is_subject: bool = False

    @property
    def head_words(self) -> str:
        """Whether it has the whole log, in a word."""
        return {True: "yes", False: "no", None: "not known"}[self.holds_head]


@dataclass(frozen=True, slots=True)
class ShardConsequences:
    """What it means for one shard. `obstacles` is what it will be refused for, `notes` what else to know of it."""

    label: str
    head: str
    lines: Sequence[CopyLine]
    before: Sequence[str]
    after: Sequence[str]
    obstacles: Sequence[str]
    notes: Sequence[str]

    @property
    def quorum_before(self) -> int:
        """How many of the members are a quorum now."""
        return quorum.quorum_of(len(self.before))

    @property
    def quorum_after(self) -> int:
        """How many of the members will be a quorum."""
        return quorum.quorum_of(len(self.after))


def removal_consequences(replicas: Collection[Replica]) -> list[ShardConsequences]:
    """Return what removing replicas does to each shard that they have a copy of."""
    names = {replica.name for replica in replicas}
    return [_removal(head, rows, names) for head, rows in _shards() if any(row.replica.name in names for row in rows)]


def handover_consequences(replica: Replica) -> list[ShardConsequences]:
    """Return what handing the primary's part over to a replica does to each shard of this node."""
    return [_handover(head, rows, replica) for head, rows in _shards()]


def _shards() -> list[tuple[ShardHead, list[Any]]]:
    rows = list(copies_with_lag().select_related("replica").order_by("replica__name"))
    heads = ShardHead.objects.filter(is_primary=True)
    return [(head, [row for row in rows if row.shard == head.uid]) for head in heads]


def _removal(head: ShardHead, rows: Sequence[Any], names: Collection[str]) -> ShardConsequences:
    before = _members(rows)
    after = [name for name in before if name not in names]
    holders = {PRIMARY} | {row.replica.name for row in rows if _holds(row, head)}
    leaving = [name for name in before if name in names]
    obstacles, notes = [], []
    enough = quorum.quorum_of(len(after))
    having = len(holders & set(after))
    if leaving and having < enough:
        obstacles.append(
            f"{having} of the {len(after)} members that stay {'has' if having == 1 else 'have'} the log up to"
            f" {head.last_seq:,}, and {enough} must have it: it is waited for, for {settings.MLVDB_PEER_TIMEOUT_S:g} s."
        )
    changing = [row for row in rows if _is_changing(row) and row.replica.name not in names]
    if leaving:
        obstacles += [f"{row.replica.name} is {row.membership}: one change of members at a time." for row in changing]
    else:
        notes.append("No member is removed: nothing changes for writes and votes.")
    if len(after) == 1:
        notes.append(
            "This node will be the only member: every level is satisfied by it alone, and what is lost with its disk is"
            " lost."
        )
    elif leaving and len(after) == 2:
        notes.append("Two members will be left: a quorum is both of them, so quorum writes wait while either is down.")
    for row in rows:
        health = PeerHealth(row.replica.health)
        if row.replica.name in names and row.membership != Membership.NONE and not health.is_routable:
            notes.append(
                f"The node of {row.replica.name} does not answer ({health.value}) and cannot be told now: it is told"
                " when it does, and goes on thinking that it is a member until then."
            )
    return ShardConsequences(
        label=head.label,
        head=position(head.term, head.last_seq),
        lines=_lines(head, rows, names),
        before=before,
        after=after,
        obstacles=obstacles,
        notes=notes,
    )


def _handover(head: ShardHead, rows: Sequence[Any], replica: Replica) -> ShardConsequences:
    before = _members(rows)
    former = name_of_former_primary(settings.MLVDB_NODE_ID)
    after = [f"{replica.name} (primary)", former, *(name for name in before if name not in (PRIMARY, replica.name))]
    own = next((row for row in rows if row.replica_id == replica.pk), None)
    if own is None:
        obstacles = [f"{replica.name} has no copy of {head.label}."]
    else:
        obstacles = [*_handover_obstacles(replica, own), *_vote_obstacles(rows)]
    notes = [
        f"{replica.name} becomes the primary in a new term, this node its replica under the name {former}: it takes no"
        " writes any more and answers them with the new primary's URL. The registry of replicas moves there too.",
    ]
    if own is not None and not _holds(own, head):
        notes.append(
            f"{replica.name} lacks {max(0, head.last_seq - own.common_seq):,} operations; it is brought to the head"
            " first, while writes go on."
        )
    return ShardConsequences(
        label=head.label,
        head=position(head.term, head.last_seq),
        lines=_lines(head, rows, {replica.name}),
        before=before,
        after=after,
        obstacles=obstacles,
        notes=notes,
    )


def _handover_obstacles(replica: Replica, row: Any) -> Iterable[str]:
    if replica.paused:
        yield f"{replica.name} is paused: resume it first."
    if not CopyState(row.state).takes_slices:
        yield f"{replica.name} does not follow this node's log: its state is {CopyState(row.state).label}."
    if row.membership != Membership.MEMBER:
        yield f"{replica.name} is no settled member: its membership is {row.membership}."
    if not PeerHealth(replica.health).is_routable:
        yield f"{replica.name} does not answer as it should: its health is {replica.health}."


def _vote_obstacles(rows: Sequence[Any]) -> Iterable[str]:
    members = {PRIMARY: Membership.MEMBER} | {row.replica.name: Membership(row.membership) for row in rows}
    away = sorted(row.replica.name for row in rows if not PeerHealth(row.replica.health).is_routable)
    if not quorum.is_elected(members.keys() - set(away), members):
        yield f"{quorum.votes_needed(members)} members have to vote, and {', '.join(away)} cannot be reached."


def _members(rows: Sequence[Any]) -> list[str]:
    """Return the members, as they will be when the change under way has ended; the primary first."""
    return [PRIMARY, *(row.replica.name for row in rows if Membership(row.membership).counts_after)]


def _is_changing(row: Any) -> bool:
    membership = Membership(row.membership)
    return membership.counts_before != membership.counts_after


def _holds(row: Any, head: ShardHead) -> bool:
    return bool((row.term == head.term or not head.last_seq) and row.seq >= head.last_seq)


def _lines(head: ShardHead, rows: Sequence[Any], subjects: Collection[str]) -> list[CopyLine]:
    first = CopyLine(
        PRIMARY, badge(Membership.MEMBER), "this node", position(head.term, head.last_seq), head.damage is None
    )
    return [
        first,
        *(
            CopyLine(
                row.replica.name,
                badge(Membership(row.membership)),
                badge(PeerHealth(row.replica.health)),
                position(row.term, row.seq),
                _holds(row, head),
                row.replica.name in subjects,
            )
            for row in rows
        ),
    ]
