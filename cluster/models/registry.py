"""What the owner of a registry knows: the cluster, its replicas and their copies, placements on their way."""

from __future__ import annotations

from django.db import models
from django.utils import timezone

from cluster.states import CopyState, Membership, PeerHealth, choices


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
