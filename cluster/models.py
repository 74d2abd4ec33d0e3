"""The registry and what a node has been told: topology, shards, replicas and their copies, moves, health, events.

The owner of a cluster's registry has `Topology.is_owner` and the rows of replicas, pushes, moves and health. Every
other node has the `Placement` rows it was sent. All are written by `cluster.services` and the packages below it alone.
"""

from __future__ import annotations

from django.db import models
from django.utils import timezone

from cluster.states import CopyState, FailoverState, Membership, MovePhase, PeerHealth, ShardState, choices


class Topology(models.Model):
    """The cluster of this node: one row. A node without it, or with replication off and no placement, is single.

    `epoch` is raised by every change of placement, in the transaction of the change.
    """

    ONLY = 1

    id = models.PositiveSmallIntegerField(primary_key=True, default=ONLY, editable=False)
    cluster = models.CharField(max_length=32, help_text="uid of the cluster")
    epoch = models.BigIntegerField(default=1)
    is_owner = models.BooleanField(default=True, help_text="Whether this node keeps the registry.")
    replication_enabled = models.BooleanField(default=False)
    sharding_enabled = models.BooleanField(default=False)
    strategy = models.CharField(
        max_length=11,
        blank=True,
        choices=[("hash", "hash"), ("round_robin", "round robin")],
        help_text="How generated ids are spread over shards; empty while sharding is not enabled.",
    )
    reign = models.BigIntegerField(
        default=0, editable=False, help_text="Raised whenever another node becomes the coordinator of the shards."
    )
    slots = models.BinaryField(
        null=True, editable=False, help_text="Owner of each slot: the key of its Shard row, little-endian uint16."
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name_plural = "topology"
        constraints = [models.CheckConstraint(condition=models.Q(id=1), name="topology_one_row")]

    def __str__(self) -> str:
        return f"{self.cluster} epoch {self.epoch}"


class Peer(models.Model):
    """A node as the owner of a registry sees it: who it is, and what the failure detector thinks of it."""

    node = models.CharField(max_length=32, blank=True, editable=False, help_text="Id of the node, once it answered.")
    version = models.CharField(max_length=32, blank=True, editable=False)
    health = models.CharField(max_length=8, choices=choices(PeerHealth), default=PeerHealth.UNKNOWN, editable=False)
    health_since = models.DateTimeField(default=timezone.now, editable=False)
    checked_at = models.DateTimeField(null=True, blank=True, editable=False)
    failures = models.PositiveIntegerField(default=0, editable=False, help_text="Failed probes in a row.")
    successes = models.PositiveIntegerField(default=0, editable=False, help_text="Answered probes in a row.")
    last_error = models.CharField(max_length=500, blank=True, editable=False)
    last_error_at = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        abstract = True


class Replica(Peer):
    """A node that keeps copies of this node's shards: of all of them, or of one."""

    name = models.CharField("replica id", max_length=128, unique=True)
    url = models.URLField("URL", max_length=255, unique=True)
    shard = models.CharField(max_length=32, blank=True, help_text="uid of the one shard it keeps; empty: all of them.")
    paused = models.BooleanField(default=False, help_text="Nothing is sent to it while set.")
    sweeps_to_skip = models.PositiveIntegerField(
        default=0, editable=False, help_text="Back-off, counted in sweeps: no clock of another process is needed."
    )
    send_failures = models.PositiveIntegerField(default=0, editable=False, help_text="Failed sendings in a row.")

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class ReplicaCopy(models.Model):
    """A replica's copy of one shard: its state, whether it counts, and the position it last answered."""

    replica = models.ForeignKey(Replica, on_delete=models.CASCADE, related_name="copies")
    shard = models.CharField(max_length=32, help_text="uid of the shard")
    state = models.CharField(max_length=11, choices=choices(CopyState), default=CopyState.NEW)
    state_since = models.DateTimeField(default=timezone.now)
    membership = models.CharField(max_length=7, choices=choices(Membership), default=Membership.NONE)
    membership_epoch = models.BigIntegerField(default=0, help_text="Epoch of the change of membership under way.")
    membership_seq = models.BigIntegerField(
        default=0, help_text="Head of the log when that change began: what a quorum must hold before it is settled."
    )
    term = models.BigIntegerField(default=0, help_text="Term of the newest entry it has.")
    seq = models.BigIntegerField(default=0, help_text="seq of the newest entry it has.")
    digest_verdict = models.CharField(
        max_length=9,
        blank=True,
        choices=[("equal", "equal"), ("differs", "differs"), ("unknown", "could not be told")],
    )
    digest_at = models.DateTimeField(null=True, blank=True)
    digest_seq = models.BigIntegerField(null=True, blank=True)
    digest_detail = models.JSONField(default=dict, blank=True)

    class Meta:
        verbose_name_plural = "replica copies"
        ordering = ["replica__name", "shard"]
        constraints = [models.UniqueConstraint(fields=["replica", "shard"], name="replica_copy_replica_shard")]

    def __str__(self) -> str:
        return f"{self.replica_id}:{self.shard[:8]} {self.state}"


class Shard(Peer):
    """A part of the id space and where its rows are: in a copy of this node's, or on a node of its own.

    A local shard has no URL and no health; its copy is the `ShardHead` with its uid. `acknowledged_epoch` is that of
    the newest assignment its node has taken; `rows` and `size_bytes` are as of the last probe. A removed shard's row
    stays, for its node to be told and for the history of moves; its number in the slot table is never another's.
    """

    label = models.CharField("shard id", max_length=128)
    uid = models.CharField(max_length=32, unique=True, editable=False)
    url = models.URLField("URL", max_length=255, blank=True, help_text="Empty: a shard on this node.")
    weight = models.FloatField(
        default=1.0, help_text="Its share of the slots, compared with the other shards' weights."
    )
    state = models.CharField(max_length=8, choices=choices(ShardState), default=ShardState.NEW, editable=False)
    has_foreign = models.BooleanField(
        default=False, editable=False, help_text="Whether it may hold rows of slots that it does not own."
    )
    fill_due = models.BooleanField(
        default=False, editable=False, help_text="Whether it is to be given its share as soon as it can be."
    )
    gate_due = models.BooleanField(
        default=False,
        editable=False,
        help_text="Whether it has yet to be told which slots it may write: they changed owner without a move.",
    )
    recheck_due = models.BooleanField(
        default=False,
        editable=False,
        help_text="Whether it has yet to say which slots it writes: this node has become the coordinator since.",
    )
    released = models.BooleanField(
        default=False, editable=False, help_text="Whether the node of a removed shard knows that it is none any more."
    )
    acknowledged_epoch = models.BigIntegerField(default=0, editable=False)
    auto_failover = models.BooleanField(
        default=True, help_text="Whether a copy takes the place of its node by itself when that is dead."
    )
    failover = models.CharField(
        max_length=7,
        blank=True,
        choices=choices(FailoverState),
        default=FailoverState.NONE,
        editable=False,
        help_text="Whether a copy is to take the place of its node: nothing that node answers counts meanwhile.",
    )
    node_epoch = models.BigIntegerField(
        default=0, editable=False, help_text="Epoch since which its URL is what it is, or its node's answers count not."
    )
    head_seq = models.BigIntegerField(default=0, editable=False, help_text="Where its log ended at the last probe.")
    copies_cluster = models.CharField(
        max_length=32, blank=True, editable=False, help_text="uid of the cluster that its copies are."
    )
    failover_error = models.CharField(
        max_length=500, blank=True, editable=False, help_text="Why no copy has taken its place yet."
    )
    attempts = models.PositiveIntegerField(default=0, editable=False, help_text="Failed assignments in a row.")
    rows = models.BigIntegerField(default=0, editable=False)
    size_bytes = models.BigIntegerField(default=0, editable=False)

    class Meta:
        ordering = ["label"]
        constraints = [
            models.UniqueConstraint(
                fields=["label"], condition=~models.Q(state=ShardState.REMOVED.value), name="shard_label"
            ),
            models.UniqueConstraint(
                fields=["url"],
                condition=~models.Q(url="") & ~models.Q(state=ShardState.REMOVED.value),
                name="shard_url",
            ),
            models.CheckConstraint(condition=models.Q(weight__gte=0), name="shard_weight_not_negative"),
        ]

    def __str__(self) -> str:
        return self.label

    @property
    def is_local(self) -> bool:
        """Whether its rows are in a copy of this node's."""
        return not self.url


class ShardCopy(models.Model):
    """A replica's copy of a shard on another node, as that node has told: it keeps the registry of its copies itself.

    `in_sync` is off from when a write was acknowledged that found the copy too far behind, until it is found caught up.
    A replica of all shards of this node has one for each of the others too, under its own name.
    """

    shard = models.ForeignKey(Shard, on_delete=models.CASCADE, related_name="copies")
    name = models.CharField("replica id", max_length=128)
    url = models.URLField("URL", max_length=255)
    node = models.CharField(max_length=32, blank=True)
    state = models.CharField(max_length=11, choices=choices(CopyState), default=CopyState.NEW)
    membership = models.CharField(max_length=7, choices=choices(Membership), default=Membership.NONE)
    health = models.CharField(max_length=8, choices=choices(PeerHealth), default=PeerHealth.UNKNOWN)
    term = models.BigIntegerField(default=0, help_text="Term of the newest entry it has.")
    seq = models.BigIntegerField(default=0, help_text="seq of the newest entry it has.")
    in_sync = models.BooleanField(default=True)
    last_error = models.CharField(max_length=500, blank=True)
    checked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name_plural = "shard copies"
        ordering = ["shard__label", "name"]
        constraints = [
            models.UniqueConstraint(fields=["shard", "name"], name="shard_copy_name"),
            models.UniqueConstraint(fields=["shard", "url"], name="shard_copy_url"),
        ]

    def __str__(self) -> str:
        return f"{self.name} of {self.shard_id}"


class ShardedNamespace(models.Model):
    """A namespace of all shards, as the registry of a coordinator knows it. A dropped uid never returns."""

    uid = models.CharField(max_length=32, unique=True, editable=False)
    name = models.CharField(max_length=128)
    dimension = models.PositiveIntegerField()
    metric = models.CharField(max_length=6)
    recall_target = models.FloatField()
    picture = models.CharField(max_length=11, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    dropped_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(
                fields=["name"], condition=models.Q(dropped_at__isnull=True), name="sharded_namespace_name_alive"
            )
        ]

    def __str__(self) -> str:
        return self.name


class NamespaceErrand(models.Model):
    """A change of a namespace that one shard has yet to be told: its attributes, or its end."""

    shard = models.ForeignKey(Shard, on_delete=models.CASCADE, related_name="namespace_errands")
    namespace = models.ForeignKey(ShardedNamespace, on_delete=models.CASCADE, related_name="errands")
    attempts = models.PositiveIntegerField(default=0)
    last_error = models.CharField(max_length=500, blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["shard", "namespace"], name="namespace_errand")]

    def __str__(self) -> str:
        return f"{self.shard_id}: {self.namespace_id}"


class Assignment(models.Model):
    """What this node has been told by a coordinator: that it is one of its shards, and which slots it owns.

    Newer epochs replace older ones. A node with one takes writes from that coordinator alone.
    """

    shard = models.CharField(max_length=32, unique=True, help_text="uid of the shard")
    label = models.CharField(max_length=128)
    cluster = models.CharField(max_length=32)
    reign = models.BigIntegerField(default=0, help_text="The coordinator of a later one wins, whatever the epochs are.")
    epoch = models.BigIntegerField()
    coordinator_node = models.CharField(max_length=32)
    coordinator_url = models.CharField(max_length=255)
    slots = models.BinaryField(help_text="A packed SlotSet: what it owns.")
    received_at = models.DateTimeField(auto_now=True)

    def __str__(self) -> str:
        return f"{self.label} of {self.coordinator_url}, epoch {self.epoch}"


class PlacementPush(models.Model):
    """A placement on its way to a node: sent at once, and again by beat until that node has acknowledged it."""

    url = models.URLField("URL", max_length=255)
    shard = models.CharField(max_length=32)
    epoch = models.BigIntegerField()
    document = models.JSONField()
    acknowledged_epoch = models.BigIntegerField(default=0)
    attempts = models.PositiveIntegerField(default=0)
    last_error = models.CharField(max_length=500, blank=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name_plural = "placement pushes"
        constraints = [models.UniqueConstraint(fields=["url", "shard"], name="placement_push_url_shard")]

    def __str__(self) -> str:
        return f"{self.url} {self.shard[:8]} epoch {self.epoch}"


class Placement(models.Model):
    """What this node has been told of one shard by the owner of its registry. Newer epochs replace older ones."""

    shard = models.CharField(max_length=32, unique=True, help_text="uid of the shard")
    cluster = models.CharField(max_length=32)
    epoch = models.BigIntegerField()
    role = models.CharField(max_length=8, choices=[("replica", "replica"), ("detached", "detached")])
    term = models.BigIntegerField()
    document = models.JSONField(help_text="Name, primary, owner and all copies: see cluster.replication.placements.")
    primary_seq = models.BigIntegerField(default=0, help_text="Head of the primary when it was last heard.")
    heard = models.BigIntegerField(default=0, help_text="Counts each time the primary is heard.")
    received_at = models.DateTimeField(auto_now=True)

    def __str__(self) -> str:
        return f"{self.shard[:8]}: {self.role}, epoch {self.epoch}"


class Move(models.Model):
    """A running or past change of placement: its plan, how far it is, and how it ended."""

    class Kind(models.TextChoices):
        """What is moved."""

        FULL_SYNC = "full_sync", "full sync"
        CATCH_UP = "catch_up", "catch-up"
        PROMOTION = "promotion", "promotion"
        REBALANCE = "rebalance", "rebalancing"
        DRAIN = "drain", "draining"
        REDISTRIBUTE = "redistribute", "redistribution"

    kind = models.CharField(max_length=12, choices=Kind.choices)
    replica = models.ForeignKey(Replica, null=True, blank=True, on_delete=models.SET_NULL, related_name="moves")
    replica_name = models.CharField(max_length=128, blank=True)
    shard = models.CharField(max_length=32, blank=True)
    phase = models.CharField(max_length=9, choices=choices(MovePhase), default=MovePhase.PLANNED)
    paused = models.BooleanField(default=False)
    cancelled = models.BooleanField(default=False, help_text="Whether it is to be undone as soon as that is possible.")
    actor = models.CharField(max_length=150, blank=True)
    plan = models.JSONField(default=dict, blank=True)
    rows_done = models.BigIntegerField(default=0)
    rows_total = models.BigIntegerField(default=0)
    bytes_done = models.BigIntegerField(default=0)
    bytes_total = models.BigIntegerField(default=0)
    work_s = models.FloatField(default=0, help_text="Seconds of copying so far, on the sender's monotonic clock.")
    error = models.CharField(max_length=500, blank=True)
    started_at = models.DateTimeField(auto_now_add=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} {self.pk}: {self.phase}"

    @property
    def eta_s(self) -> float | None:
        """Seconds of copying that are left at the rate so far; None while there is no rate, or no need."""
        if MovePhase(self.phase).is_over or not self.bytes_done or self.work_s <= 0:
            return None
        return max(0.0, (self.bytes_total - self.bytes_done) * self.work_s / self.bytes_done)


class MoveStep(models.Model):
    """Slots on their way from one shard to another: a part of a move, with its own phase and cursor."""

    move = models.ForeignKey(Move, on_delete=models.CASCADE, related_name="steps")
    uid = models.CharField(max_length=32, unique=True)
    source = models.ForeignKey(Shard, on_delete=models.CASCADE, related_name="+")
    target = models.ForeignKey(Shard, on_delete=models.CASCADE, related_name="+")
    slots = models.BinaryField(help_text="A packed SlotSet.")
    phase = models.CharField(max_length=9, choices=choices(MovePhase), default=MovePhase.PLANNED)
    state = models.JSONField(default=dict, blank=True, help_text="Where it is within its phase.")
    rows_done = models.BigIntegerField(default=0)
    rows_total = models.BigIntegerField(default=0)
    bytes_done = models.BigIntegerField(default=0)
    bytes_total = models.BigIntegerField(default=0)
    attempts = models.PositiveIntegerField(default=0, help_text="Failures in a row.")
    error = models.CharField(max_length=500, blank=True)

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.move_id}: {self.source_id} to {self.target_id}, {self.phase}"


class DigestRun(models.Model):
    """Digests of one shard copy of this node at one position, per slot range; computed by a background task."""

    request = models.CharField(max_length=32, unique=True, help_text="Made by the node that asks.")
    shard = models.CharField(max_length=32)
    term = models.BigIntegerField()
    seq = models.BigIntegerField()
    ranges = models.JSONField(null=True, blank=True, help_text="[rows, digest] per slot range")
    error = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.shard[:8]} at ({self.term}, {self.seq})"


class HealthCheck(models.Model):
    """One probe of a replica, or of a shard's node, and what the detector made of it; history for charts."""

    replica = models.ForeignKey(Replica, null=True, blank=True, on_delete=models.CASCADE, related_name="health_checks")
    shard = models.ForeignKey(Shard, null=True, blank=True, on_delete=models.CASCADE, related_name="health_checks")
    at = models.DateTimeField(default=timezone.now, db_index=True)
    ok = models.BooleanField()
    health = models.CharField(max_length=8, choices=choices(PeerHealth))
    took_ms = models.FloatField()
    error = models.CharField(max_length=500, blank=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.replica_id or self.shard_id} {'ok' if self.ok else self.error}"


class ClusterEvent(models.Model):
    """Who changed what in the cluster, before and after; written in the transaction of the change."""

    at = models.DateTimeField(default=timezone.now, db_index=True)
    actor = models.CharField(max_length=150, help_text="User, key, node or task.")
    action = models.CharField(max_length=64)
    subject = models.CharField(max_length=160)
    before = models.JSONField(null=True, blank=True)
    after = models.JSONField(null=True, blank=True)
    epoch = models.BigIntegerField(default=0)
    alarm = models.BooleanField(default=False, help_text="A person should look at this.")

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.action} {self.subject}"
