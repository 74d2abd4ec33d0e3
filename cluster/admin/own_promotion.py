"""What promoting this node, a replica, means: as the others say when they are asked now. Beside `consequences`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from django.conf import settings

from cluster.admin.consequences import CopyLine, ShardConsequences
from cluster.admin.wording import NOTHING, badge, position
from cluster.health.probe import NodeStatus, ShardStatus, status_ask
from cluster.health.samples import probing
from cluster.models import Placement
from cluster.replication import quorum
from cluster.replication.placements import PlacedCopy, PlacementDocument
from cluster.replication.quorum import PRIMARY
from cluster.replication.votes import may_stand, members_of
from cluster.services.accession import name_of_former_primary
from cluster.states import CopyState, Membership
from vectors.models import ShardHead
from vectors.store.log import Position
from vectors.store.staging import is_under_way

_Answers = dict[str, tuple[NodeStatus, ShardStatus] | None]


def own_promotion_consequences(placements: Iterable[Placement]) -> list[ShardConsequences]:
    """Return what promoting this node, a replica, does to each shard it was told of. The other copies are asked now,
    all at once, for MLVDB_PROBE_TIMEOUT_S at most; they are told nothing."""
    heads = {head.uid: head for head in ShardHead.objects.all()}
    found = []
    for placement in placements:
        document = PlacementDocument.of(placement.document)
        head = heads.get(placement.shard)
        if document.is_detached:
            found.append(_secession(placement, document, head))
        else:
            found.append(_own_promotion(placement, document, head, _asked(document)))
    return found


def _asked(document: PlacementDocument) -> _Answers:
    """Return what each other copy's node says of itself and the copy, by name; None for one that does not."""
    others = [copy for copy in document.copies if copy.name != document.name]
    if not others:
        return {}
    with ThreadPoolExecutor(len(others), thread_name_prefix="look") as pool:
        return dict(
            zip([copy.name for copy in others], pool.map(lambda copy: _ask(copy, document), others), strict=True)
        )


def _ask(copy: PlacedCopy, document: PlacementDocument) -> tuple[NodeStatus, ShardStatus] | None:
    with probing():
        status = status_ask(copy.url, timeout_s=settings.MLVDB_PROBE_TIMEOUT_S)
    if (
        status is None
        or status.cluster_of(document.shard) != document.cluster
        or (copy.node and status.node != copy.node)
    ):
        return None
    shard = status.shards.get(document.shard)
    return None if shard is None else (status, shard)


def _own_promotion(
    placement: Placement, document: PlacementDocument, head: ShardHead | None, answers: _Answers
) -> ShardConsequences:
    own = (0, 0) if head is None else (head.term, head.last_seq)
    best = max([own, *(shard.position for answer in answers.values() if answer for shard in answer[1:])])
    before = [name for name, membership in members_of(document).items() if membership.counts_after]
    former = name_of_former_primary(document.primary.node)
    others = [former if name == PRIMARY else name for name in before if name != document.name]
    return ShardConsequences(
        label=document.label,
        head=f"{position(*best)}, of the copies that answer",
        lines=[_told_line(copy, document, own, best, answers) for copy in document.copies],
        before=before,
        after=[f"{document.name} (primary)", *others],
        obstacles=[*_unfitness(placement, document, head), *_obstacles(document, own, best, answers)],
        notes=list(_notes(placement, own, answers)),
    )


def _secession(placement: Placement, document: PlacementDocument, head: ShardHead | None) -> ShardConsequences:
    """Return what it means for a copy that was removed from its cluster: nobody else is concerned."""
    own = (0, 0) if head is None else (head.term, head.last_seq)
    return ShardConsequences(
        label=document.label,
        head=position(*own),
        lines=[CopyLine(document.name, badge(Membership.NONE), "this node", position(*own), True, is_subject=True)],
        before=["nobody: this copy was removed"],
        after=[f"{document.name} (primary)"],
        obstacles=[
            *_unfitness(placement, document, head),
            "This copy was removed from its cluster: by force it becomes the primary of a cluster of its own.",
        ],
        notes=[],
    )


def _unfitness(placement: Placement, document: PlacementDocument, head: ShardHead | None) -> Iterator[str]:
    """Yield what keeps this copy from being the primary, whoever wants it."""
    if head is None or head.damage is not None:
        yield "This copy is damaged, or not there yet. Force does not help."
    elif is_under_way(document.shard, head.pk, Position(head.term, head.last_seq)) or (
        head.last_seq == 0 and placement.primary_seq > 0
    ):
        yield "This copy is in the middle of a full sync. Force does not help."
    if document.own is not None and document.own.state is CopyState.QUARANTINED:
        yield "This copy is quarantined: its contents differ from the primary's. Force does not help."


def _obstacles(
    document: PlacementDocument, own: tuple[int, int], best: tuple[int, int], answers: _Answers
) -> Iterator[str]:
    """Yield what the promotion will be refused for without force."""
    members = members_of(document)
    primary = answers.get(PRIMARY)
    if primary is not None and primary[1].role == PRIMARY and primary[1].promised_term == primary[1].term:
        yield f"The primary at {document.primary.url} answers: promote from there, where nothing is lost."
    if best > own:
        holders = [name for name, answer in answers.items() if answer and answer[1].position == best]
        yield f"{' and '.join(holders)} has more than this copy: promote that one."
    if not may_stand(document):
        yield "This copy is no settled member: it may have missed writes."
    voters = {document.name} | {name for name, answer in answers.items() if answer and not answer[1].quarantined}
    if not quorum.is_elected(voters, members):
        yield (
            f"{len(voters & members.keys())} of the {quorum.votes_needed(members)} votes that are needed can be had:"
            " with fewer, a write that a quorum has acknowledged might be on none of the copies that were asked."
        )


def _notes(placement: Placement, own: tuple[int, int], answers: _Answers) -> Iterator[str]:
    """Yield what may be missing from this copy."""
    missing = placement.primary_seq - own[1]
    if missing > 0:
        yield (
            f"When the primary was last heard its log ended at {placement.primary_seq:,}: at least {missing:,}"
            " operations are not here."
        )
    silent = [name for name, answer in answers.items() if answer is None]
    if silent:
        yield f"Not reached: {', '.join(silent)}. What only they have is not known."


def _told_line(
    copy: PlacedCopy, document: PlacementDocument, own: tuple[int, int], best: tuple[int, int], answers: _Answers
) -> CopyLine:
    membership = badge(copy.membership)
    if copy.name == document.name:
        return CopyLine(copy.name, membership, "this node", position(*own), own == best, is_subject=True)
    answer = answers.get(copy.name)
    if answer is None:
        return CopyLine(copy.name, membership, "does not answer", NOTHING, None)
    shard = answer[1]
    return CopyLine(
        copy.name, membership, f"answers as {shard.role}", position(*shard.position), shard.position == best
    )
