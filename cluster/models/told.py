"""What a node has been told: its placements, and a coordinator's assignment."""

from __future__ import annotations

from django.db import models


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
