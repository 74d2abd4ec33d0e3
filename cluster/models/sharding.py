"""What a coordinator knows of its shards: where they are, their copies there, and the namespaces of all of them."""

from __future__ import annotations

from django.db import models

from cluster.models.registry import Peer
from cluster.states import CopyState, FailoverState, Membership, PeerHealth, ShardState, choices


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
