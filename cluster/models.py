"""The registry and what a node has been told: topology, replicas and their copies, placements, moves, health, events.

The owner of a cluster's registry has `Topology.is_owner` and the rows of replicas, pushes, moves and health. Every
other node has the `Placement` rows it was sent. All are written by `cluster.services` and the packages below it alone.
"""

from __future__ import annotations

from django.db import models
from django.utils import timezone

from cluster.states import CopyState, Membership, MovePhase, PeerHealth, choices


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
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name_plural = "topology"
        constraints = [models.CheckConstraint(condition=models.Q(id=1), name="topology_one_row")]

    def __str__(self) -> str:
        return f"{self.cluster} epoch {self.epoch}"


class Replica(models.Model):
    """A node that keeps copies of this node's shards: of all of them, or of one."""

    name = models.CharField("replica id", max_length=128, unique=True)
    url = models.URLField("URL", max_length=255, unique=True)
    shard = models.CharField(max_length=32, blank=True, help_text="uid of the one shard it keeps; empty: all of them.")
    node = models.CharField(max_length=32, blank=True, editable=False, help_text="Id of the node, once it answered.")
    version = models.CharField(max_length=32, blank=True, editable=False)
    paused = models.BooleanField(default=False, help_text="Nothing is sent to it while set.")
    health = models.CharField(max_length=8, choices=choices(PeerHealth), default=PeerHealth.UNKNOWN, editable=False)
    health_since = models.DateTimeField(default=timezone.now, editable=False)
    checked_at = models.DateTimeField(null=True, blank=True, editable=False)
    failures = models.PositiveIntegerField(default=0, editable=False, help_text="Failed probes in a row.")
    successes = models.PositiveIntegerField(default=0, editable=False, help_text="Answered probes in a row.")
    sweeps_to_skip = models.PositiveIntegerField(
        default=0, editable=False, help_text="Back-off, counted in sweeps: no clock of another process is needed."
    )
    send_failures = models.PositiveIntegerField(default=0, editable=False, help_text="Failed sendings in a row.")
    last_error = models.CharField(max_length=500, blank=True, editable=False)
    last_error_at = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

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

    kind = models.CharField(max_length=9, choices=Kind.choices)
    replica = models.ForeignKey(Replica, null=True, blank=True, on_delete=models.SET_NULL, related_name="moves")
    replica_name = models.CharField(max_length=128, blank=True)
    shard = models.CharField(max_length=32)
    phase = models.CharField(max_length=9, choices=choices(MovePhase), default=MovePhase.PLANNED)
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
    """One probe of a replica and what the detector made of it; history for charts."""

    replica = models.ForeignKey(Replica, on_delete=models.CASCADE, related_name="health_checks")
    at = models.DateTimeField(default=timezone.now, db_index=True)
    ok = models.BooleanField()
    health = models.CharField(max_length=8, choices=choices(PeerHealth))
    took_ms = models.FloatField()
    error = models.CharField(max_length=500, blank=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.replica_id} {'ok' if self.ok else self.error}"


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
