"""The rows of one node: shard heads, their logs, terms and manifests, namespaces, pins, leases, measures of recall.

These rows are written by `vectors.store`, `vectors.recall` and `vectors.services` alone; the log's hot path is plain
SQL in `vectors.store.log`, over the tables declared here.
"""

from __future__ import annotations

import uuid

from django.conf import settings
from django.db import models

from vectors.engine.operations import Kind


def _new_uid() -> str:
    return uuid.uuid4().hex


def _this_node() -> str:
    return str(settings.MLVDB_NODE_ID)


class ShardHead(models.Model):
    """One shard copy of this node: the head of its log and what is known of it. Locked for every append."""

    uid = models.CharField(max_length=32, unique=True, default=_new_uid, editable=False)
    label = models.CharField(max_length=128, unique=True)
    node = models.CharField(
        max_length=32, default=_this_node, editable=False, help_text="Id of the node whose data dir has the segments."
    )
    term = models.BigIntegerField(default=1, help_text="Term of the newest entry.")
    promised_term = models.BigIntegerField(
        default=1, help_text="The highest term this copy has heard of or voted for; older ones are refused."
    )
    voted_for = models.CharField(
        max_length=32, blank=True, default="", help_text="Id of the node that has this copy's vote in promised_term."
    )
    is_primary = models.BooleanField(default=True, help_text="Whether this copy orders the writes of its shard.")
    last_seq = models.BigIntegerField(default=0)
    incarnation = models.BigIntegerField(default=1, help_text="Changes when the log is cut back or refilled.")
    manifest = models.BigIntegerField(default=0, help_text="Number of the current manifest; 0: none yet.")
    manifest_seq = models.BigIntegerField(default=0, help_text="Operations up to this seq are in segments.")
    tail_bytes = models.BigIntegerField(default=0, help_text="Payload bytes after manifest_seq.")
    slots_seq = models.BigIntegerField(
        default=0, help_text="seq of the newest entry that says which slots may be written; 0: all of them may."
    )
    knocked = models.BooleanField(default=False, help_text="Whether the senders have been told of new entries.")
    damage = models.JSONField(null=True, blank=True, help_text="What is corrupt; writes are refused while set.")
    index_faults = models.JSONField(
        default=dict, blank=True, help_text="Index files that cannot be used, by segment; the next merge makes others."
    )
    rows_flushed = models.BigIntegerField(default=0, help_text="Rows that checkpoints have brought into segments.")
    rows_merged = models.BigIntegerField(default=0, help_text="Rows that merges have written into segments again.")
    merged_at = models.DateTimeField(null=True, blank=True, help_text="When segments were last merged or indexed.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["label"]

    def __str__(self) -> str:
        return self.label


class LogEntry(models.Model):
    """One durable operation: a client batch, a delete, a patch, or a change of a namespace."""

    shard = models.ForeignKey(ShardHead, on_delete=models.CASCADE, related_name="log", db_index=False)
    seq = models.BigIntegerField()
    term = models.BigIntegerField()
    namespace = models.CharField(max_length=32, help_text="uid of the namespace")
    kind = models.PositiveSmallIntegerField(choices=[(kind.value, kind.name.lower()) for kind in Kind])
    rows = models.PositiveIntegerField()
    payload = models.BinaryField()
    crc32 = models.BigIntegerField()
    created_at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["shard", "seq"], name="log_entry_shard_seq")]
        verbose_name_plural = "log entries"

    def __str__(self) -> str:
        return f"{self.shard_id}:({self.term}, {self.seq})"


class Manifest(models.Model):
    """The list of segment files that stand for a shard's operations up to `seq`, with sizes and checksums."""

    class Origin(models.TextChoices):
        """What made it."""

        CHECKPOINT = "checkpoint", "a checkpoint"
        MERGE = "merge", "a merge"
        INDEX = "index", "a new index"
        INSTALL = "install", "a full sync"

    shard = models.ForeignKey(ShardHead, on_delete=models.CASCADE, related_name="manifests")
    number = models.BigIntegerField()
    seq = models.BigIntegerField()
    term = models.BigIntegerField()
    document = models.JSONField()
    crc32 = models.BigIntegerField()
    origin = models.CharField(max_length=10, choices=Origin.choices, default=Origin.CHECKPOINT)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["shard", "number"], name="manifest_shard_number")]

    def __str__(self) -> str:
        return f"{self.shard_id}: manifest {self.number} at seq {self.seq}"


class Namespace(models.Model):
    """A named set of vectors of one dimension and one metric in one shard copy. A dropped uid never returns."""

    class Metric(models.TextChoices):
        """How two vectors are compared."""

        COSINE = "cosine", "cosine similarity"
        IP = "ip", "inner product"
        L2 = "l2", "squared distance"

    shard = models.ForeignKey(ShardHead, on_delete=models.CASCADE, related_name="namespaces")
    uid = models.CharField(max_length=32, default=_new_uid, editable=False)
    name = models.CharField(max_length=128)
    dimension = models.PositiveIntegerField()
    metric = models.CharField(max_length=6, choices=Metric.choices, default=Metric.COSINE)
    recall_target = models.FloatField(default=0.99)
    picture = models.CharField(
        max_length=11, blank=True, help_text="WIDTHxHEIGHT when the values of a row are the grey levels of a picture."
    )
    created_at = models.DateTimeField(auto_now_add=True)
    dropped_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["shard", "uid"], name="namespace_shard_uid"),
            models.UniqueConstraint(
                fields=["shard", "name"], condition=models.Q(dropped_at__isnull=True), name="namespace_shard_name_alive"
            ),
            models.CheckConstraint(condition=models.Q(dimension__gte=1), name="namespace_dimension_positive"),
            models.CheckConstraint(
                condition=models.Q(recall_target__gt=0) & models.Q(recall_target__lte=1), name="namespace_recall_target"
            ),
        ]

    def __str__(self) -> str:
        return self.name


class ShardTerm(models.Model):
    """Where a term begins in a shard's log: the seq of its first entry. Kept when the entry itself is pruned."""

    shard = models.ForeignKey(ShardHead, on_delete=models.CASCADE, related_name="terms")
    term = models.BigIntegerField()
    first_seq = models.BigIntegerField()

    class Meta:
        ordering = ["term"]
        constraints = [models.UniqueConstraint(fields=["shard", "term"], name="shard_term")]

    def __str__(self) -> str:
        return f"{self.shard_id}: term {self.term} from seq {self.first_seq}"


class ShardSlots(models.Model):
    """Which slots of a shard may be written from a seq on; kept when the entry that says so is pruned."""

    shard = models.ForeignKey(ShardHead, on_delete=models.CASCADE, related_name="slot_changes")
    seq = models.BigIntegerField()
    epoch = models.BigIntegerField(help_text="Epoch of the slot table: reads planned by an older one are refused.")
    writable = models.BinaryField(help_text="A packed SlotSet.")

    class Meta:
        verbose_name_plural = "shard slots"
        ordering = ["seq"]
        constraints = [models.UniqueConstraint(fields=["shard", "seq"], name="shard_slots_seq")]

    def __str__(self) -> str:
        return f"{self.shard_id}: slots from seq {self.seq}"


class MoveCursor(models.Model):
    """How far rows of another shard have come in, changed in the transaction that adds them to the log."""

    shard = models.ForeignKey(ShardHead, on_delete=models.CASCADE, related_name="move_cursors")
    move = models.CharField(max_length=64, help_text="uid of the move's step, made by the node that runs it")
    cursor = models.CharField(max_length=600, help_text="Opaque here; the next rows must begin at it.")
    rows = models.BigIntegerField(default=0, help_text="Rows that came in so far.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["shard", "move"], name="move_cursor_shard_move")]

    def __str__(self) -> str:
        return f"{self.shard_id}: {self.move}"


class Pin(models.Model):
    """What pruning must leave: log entries after `seq`, and the files of manifest `manifest` (0: no files).

    The holder bumps `beats`; a pin that is seen unchanged for MLVDB_PIN_S is ignored, and MLVDB_LOG_RETENTION_BYTES
    bounds what pins may keep.
    """

    shard = models.ForeignKey(ShardHead, on_delete=models.CASCADE, related_name="pins")
    holder = models.CharField(max_length=128)
    seq = models.BigIntegerField()
    manifest = models.BigIntegerField(default=0)
    beats = models.BigIntegerField(default=0)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["shard", "holder"], name="pin_shard_holder")]

    def __str__(self) -> str:
        return f"{self.shard_id}: {self.holder} from seq {self.seq}"


class Lease(models.Model):
    """Who may do what `name` stands for: an owner, a fencing token, and a counter that the owner bumps while it works.

    Names: `checkpoint:<shard id>`, `merge:<shard id>`, `ship:<replica id>`, and the like.
    """

    name = models.CharField(max_length=128, unique=True)
    owner = models.CharField(max_length=128, blank=True)
    token = models.BigIntegerField(default=0)
    beats = models.BigIntegerField(default=0)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return f"{self.name}: {self.owner or 'free'}"


class QuerySample(models.Model):
    """A query that was searched for: what indexes are tuned and measured with. The newest of a namespace are kept.

    By uid, not by row: the shard copies that this node has of a namespace are asked the same queries.
    """

    namespace = models.CharField(max_length=32, help_text="uid of the namespace")
    values = models.BinaryField(help_text="(d,) little-endian float32")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        indexes = [models.Index(fields=["namespace", "id"], name="query_sample_namespace")]

    def __str__(self) -> str:
        return f"a query of {self.namespace}"


class RecallMeasure(models.Model):
    """What share of the true neighbours the index of a namespace in one shard copy found, at one moment."""

    namespace = models.ForeignKey(Namespace, on_delete=models.CASCADE, related_name="recall_measures")
    measured_at = models.DateTimeField(auto_now_add=True)
    recall = models.FloatField(help_text="Share of the true neighbours found, 0 to 1.")
    target = models.FloatField(help_text="The share promised at that moment.")
    queries = models.PositiveIntegerField(help_text="Queries that were searched for.")
    is_real = models.BooleanField(help_text="Whether they were asked by clients; otherwise they are rows of its own.")
    is_short = models.BooleanField(help_text="Whether the target was missed by more than chance explains.")
    indexed_rows = models.BigIntegerField(help_text="Rows in segments with an index.")
    rows = models.BigIntegerField(help_text="All rows.")
    took_s = models.FloatField()

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"{self.recall:.3f} of {self.target:g}"


class IndexRequest(models.Model):
    """A wish that the segments of a namespace get indexes tuned anew. The next merge looks for them."""

    class Reason(models.TextChoices):
        """Why."""

        TARGET = "target", "the recall target was raised"
        MEASURED = "measured", "the measured recall fell short"
        ASKED = "asked", "somebody asked for it"

    namespace = models.ForeignKey(Namespace, on_delete=models.CASCADE, related_name="index_requests")
    reason = models.CharField(max_length=8, choices=Reason.choices)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.namespace_id}: {self.get_reason_display()}"
