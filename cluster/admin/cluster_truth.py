"""The cluster as this node knows it now, as boxes and arrows: all of it at a coordinator, else what was told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from django.conf import settings
from django.urls import reverse
from django.utils import timezone

from cluster.admin.drawing import Arrow, CopyBox, NodeBox, ShardBox
from cluster.admin.shard_truth import ShardNow, living_shards, shards_now, slots_in, steps_under_way
from cluster.admin.truth import CopyTruth, copies_with_lag
from cluster.admin.wording import NOTHING, counted, position, share, tone
from cluster.models import SLOT_KINDS, Move, MoveStep, Shard, ShardCopy
from cluster.node_urls import own_url
from cluster.states import CopyState, Membership, MovePhase, PeerHealth, ShardState
from cluster.topology import CopyView, ShardView, TopologyView, topology
from vectors.engine.ids import SLOT_COUNT
from vectors.models import ShardHead

_WORST_FIRST = ("bad", "warn", "busy", "quiet", "good")
_Lags = Mapping[tuple[int | None, str], int | None]


@dataclass(frozen=True, slots=True)
class ClusterNow:
    """What the picture shows, and the table beside it; `sentence` is the whole in a line."""

    node: NodeBox
    shards: Sequence[ShardBox]
    arrows: Sequence[Arrow]
    sentence: str


def cluster_now() -> ClusterNow:
    """Return it, from this node's own rows; the number of queries does not depend on how much there is."""
    picture = topology()
    heads = {head.uid: head for head in ShardHead.objects.all()}
    lags = _lags(picture, heads)
    if picture.is_owner and picture.sharding is not None:
        elsewhere = _copies_elsewhere()
        shards = [_owned(now, picture, lags, elsewhere) for now in shards_now(living_shards())]
    else:
        shards = [_known(shard, picture, heads.get(uid), lags) for uid, shard in picture.shards.items()]
    arrows = [*_arrows(steps_under_way()), *_queued_arrows(shards)]
    return ClusterNow(_leader(picture), shards, arrows, _sentence(shards, arrows))


def _leader(picture: TopologyView) -> NodeBox:
    """Return the node that others follow: this one, or who has told it what to do."""
    told, placement = picture.assignment, picture.placement
    if told is not None:
        lines = (told.coordinator_url, f"node {told.coordinator_node[:8]}", f"told in epoch {told.epoch}")
        return NodeBox("Coordinator", "quiet", lines)
    if placement is not None and not picture.is_owner:
        lines = (placement.owner_url, f"node {placement.owner_node[:8]}", f"told in epoch {placement.epoch}")
        return NodeBox("Primary", "quiet", lines)
    own = (own_url() or "serves no HTTP", f"this node, {settings.MLVDB_NODE_ID[:8]}")
    if picture.sharding is not None:
        strategy = picture.sharding.strategy.replace("_", " ")
        return NodeBox("Coordinator", "good", (*own, f"epoch {picture.epoch}, {strategy}"), is_self=True)
    if picture.replication_enabled:
        return NodeBox("Primary", "good", (*own, f"epoch {picture.epoch}"), is_self=True)
    return NodeBox("Single node", "good", (*own, "in no cluster"), is_self=True)


def _owned(now: ShardNow, picture: TopologyView, lags: _Lags, elsewhere: Mapping[int, Sequence[ShardCopy]]) -> ShardBox:
    """Return a shard of this coordinator."""
    shard, state, health = now.shard, ShardState(now.shard.state), PeerHealth(now.shard.health)
    if now.is_damaged:
        tones, condition = ["bad"], f"{state.value}, damaged"
    elif shard.is_local:
        tones, condition = [tone(state)], state.value
    else:
        tones, condition = [tone(state), tone(health)], f"{state.value}, {health.value}"
    if shard.failover:
        tones, condition = ["bad"], f"{condition}, failover {shard.failover}"
    view = picture.shards.get(shard.uid)
    return ShardBox(
        key=shard.uid,
        label=shard.label,
        tone=min(tones, key=_WORST_FIRST.index),
        condition=condition,
        place=shard.url or "on this node",
        amounts=f"{counted(now.slots, 'slot')} ({now.slots_share}), {counted(now.rows, 'row')}, {now.size}",
        part=now.slots / SLOT_COUNT,
        url=reverse("admin:cluster_shard_change", args=(shard.pk,)),
        is_self=shard.is_local,
        copies=[
            *(_copy(copy, shard.uid, lags) for copy in (() if view is None else view.copies)),
            *(_copy_elsewhere(copy, shard) for copy in elsewhere.get(shard.pk, ())),
        ],
    )


def _known(shard: ShardView, picture: TopologyView, head: ShardHead | None, lags: _Lags) -> ShardBox:
    """Return a shard of a node that divides nothing: its own, or one that it was told of."""
    told = picture.assignment
    is_assigned = told is not None and told.uid == shard.uid
    damage = head is not None and head.damage is not None
    amounts = "no copy here yet" if head is None else f"its log ends at {position(head.term, head.last_seq)} here"
    part = None
    if told is not None and is_assigned:
        part = len(told.slots) / SLOT_COUNT
        amounts = f"{counted(len(told.slots), 'slot')} ({share(len(told.slots), SLOT_COUNT)}), {amounts}"
    place = "on this node" if shard.is_local_primary else shard.primary_url or "its primary is not known"
    return ShardBox(
        key=shard.uid,
        label=told.label if told is not None and is_assigned else shard.label,
        tone="bad" if damage else "good" if shard.is_local_primary else "quiet",
        condition="damaged" if damage else "primary" if shard.is_local_primary else "primary elsewhere",
        place=place,
        amounts=amounts,
        part=part,
        is_self=shard.is_local_primary,
        copies=[_copy(copy, shard.uid, lags) for copy in shard.copies],
    )


def _copy(copy: CopyView, uid: str, lags: _Lags) -> CopyBox:
    tones = [tone(copy.state)]
    words = [copy.state.label]
    if copy.membership is not Membership.MEMBER:
        words.append(f"member: {copy.membership.value}")
    if copy.replica_id is not None:
        tones.append(tone(copy.health))
        words.append(copy.health.value)
    if copy.paused:
        tones.append("warn")
        words.append("paused")
    lag = lags.get((copy.replica_id, uid)) if copy.replica_id is not None or copy.is_self else None
    words.append(f"lag {NOTHING if lag is None else f'{lag:,}'}")
    return CopyBox(
        copy.name,
        min(tones, key=_WORST_FIRST.index),
        ", ".join(words),
        url="" if copy.replica_id is None else reverse("admin:cluster_replica_change", args=(copy.replica_id,)),
        is_self=copy.is_self,
    )


def _copies_elsewhere() -> dict[int, list[ShardCopy]]:
    """Return what the nodes of shards have told of their copies, by the number of the shard."""
    copies: dict[int, list[ShardCopy]] = defaultdict(list)
    for copy in ShardCopy.objects.order_by("name"):
        copies[copy.shard_id].append(copy)
    return copies


def _copy_elsewhere(copy: ShardCopy, shard: Shard) -> CopyBox:
    state, health = CopyState(copy.state), PeerHealth(copy.health)
    words = [state.label, health.value, f"lag {max(0, shard.head_seq - copy.seq):,}"]
    if copy.membership != Membership.MEMBER:
        words.insert(1, f"member: {copy.membership}")
    if not copy.in_sync:
        words.append("out of sync")
    return CopyBox(copy.name, min([tone(state), tone(health)], key=_WORST_FIRST.index), ", ".join(words))


def _lags(picture: TopologyView, heads: Mapping[str, ShardHead]) -> _Lags:
    """Return the operations that copies lack: at their primary of all of them, at a replica of its own."""
    now = timezone.now()
    found: dict[tuple[int | None, str], int | None] = {
        (row.replica_id, row.shard): CopyTruth(row, None, now).lag for row in copies_with_lag()
    }
    for uid, shard in picture.shards.items():
        head = heads.get(uid)
        if shard.placement is not None and head is not None:
            found[None, uid] = max(0, shard.placement.primary_seq - head.last_seq)
    return found


def _arrows(steps: Iterable[MoveStep]) -> list[Arrow]:
    """Return one arrow for all steps between two shards."""
    ways: dict[tuple[str, str], list[MoveStep]] = defaultdict(list)
    for step in steps:
        ways[step.source.uid, step.target.uid].append(step)
    return [_arrow(source, target, some) for (source, target), some in ways.items()]


def _queued_arrows(shards: Sequence[ShardBox]) -> list[Arrow]:
    """Return what moves that wait for their turn will do, as they were planned when they were asked for."""
    keys = {shard.label: shard.key for shard in shards}
    waiting = Move.objects.filter(kind__in=SLOT_KINDS, phase=MovePhase.PLANNED, steps=None).order_by("id")
    return [
        Arrow(
            keys[step["source"]],
            keys[step["target"]],
            f"{step['source']} to {step['target']}: {counted(step['slots'], 'slot')},"
            f" {'paused' if move.paused else 'waits for its turn'}",
            None,
            "warn" if move.paused else "quiet",
            url=reverse("admin:cluster_move_change", args=(move.pk,)),
        )
        for move in waiting
        for step in move.plan.get("steps", ())
        if step["source"] in keys and step["target"] in keys
    ]


def _arrow(source: str, target: str, steps: Sequence[MoveStep]) -> Arrow:
    first = steps[0]
    done, total = sum(step.rows_done for step in steps), sum(step.rows_total for step in steps)
    part = min(1.0, done / total) if total else None
    phases = sorted({MovePhase(step.phase) for step in steps}, key=list(MovePhase).index)
    failing = any(step.error for step in steps)
    words = [
        f"{first.source.label} to {first.target.label}:"
        f" {counted(sum(slots_in(bytes(step.slots)) for step in steps), 'slot')}",
        "paused" if first.move.paused else " and ".join(phase.value for phase in phases),
    ]
    if part is not None:
        words.append(share(done, total))
    words += [step.error for step in steps if step.error][:1]
    return Arrow(
        source,
        target,
        ", ".join(words),
        part,
        "bad" if failing else "warn" if first.move.paused else "busy",
        url=reverse("admin:cluster_move_change", args=(first.move_id,)),
    )


def _sentence(shards: Sequence[ShardBox], arrows: Sequence[Arrow]) -> str:
    copies = [copy for shard in shards for copy in shard.copies]
    words = [counted(len(shards), "shard")]
    if copies:
        words.append(f"{len(copies)} more {'copy' if len(copies) == 1 else 'copies'} of them")
    if arrows:
        words.append(f"slots on their way between {counted(len(arrows), 'pair')} of shards")
    sick = {box.label for box in shards if box.tone == "bad"} | {box.name for box in copies if box.tone == "bad"}
    names = ", ".join(sorted(sick))
    words.append(f"not well: {names}" if names else "nothing is dead or damaged")
    return f"{'; '.join(words)}."
