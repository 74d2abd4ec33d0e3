"""Moves, of replicas and of slots, and the steps of the latter."""

from __future__ import annotations

from django.db import models

from cluster.models.registry import Replica
from cluster.models.sharding import Shard
from cluster.states import MovePhase, choices


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


SLOT_KINDS = (Move.Kind.REBALANCE, Move.Kind.DRAIN, Move.Kind.REDISTRIBUTE)
"""Moves of slots, which have steps; the others copy to a replica."""


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
