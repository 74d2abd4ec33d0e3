"""What was seen and done: probes, digests, and who changed what."""

from __future__ import annotations

from django.db import models
from django.utils import timezone

from cluster.models.registry import Replica
from cluster.models.sharding import Shard
from cluster.states import PeerHealth, choices


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
