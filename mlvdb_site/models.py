"""The rows of the site itself: API keys, markers of change, and the last sign of life of background processes."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.utils import timezone


class Scope(models.TextChoices):
    """What a key allows. No scope includes another."""

    READ = "read", "read: search, fetch, count, list"
    WRITE = "write", "write: insert, change and delete vectors and namespaces"
    OPERATE = "operate", "operate: change the node and its cluster"


class ApiKey(models.Model):
    """A key of the API. Only a keyed digest of it is stored; written by `mlvdb_site.keys` alone."""

    name = models.CharField(max_length=100, help_text="Who or what uses the key.")
    prefix = models.CharField(max_length=16, unique=True, editable=False, help_text="The readable part of the key.")
    digest = models.CharField(max_length=64, editable=False)
    scopes = models.JSONField(default=list)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, editable=False, on_delete=models.SET_NULL, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)
    last_used_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="Recorded at most once a minute."
    )
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        ordering = ["name", "id"]
        verbose_name = "API key"
        permissions = [
            ("write_vectors", "Can write vectors and namespaces over the API"),
            ("operate_node", "Can change the node and its cluster over the API"),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix})"


class ChangeMarker(models.Model):
    """A value that differs after each change of what it is named for. Read by every request (`mlvdb_site.markers`)."""

    name = models.CharField(max_length=64, primary_key=True)
    value = models.CharField(max_length=128)

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


class ProcessHeartbeat(models.Model):
    """The last sign of life of one background process of a node.

    `beats` counts up and `owner` says who counts: for beat the row is also the lease that makes one of them work.
    `seen_at` is for people; whether a lease has run out is judged by changes of `beats` alone.
    """

    node = models.CharField(max_length=32)
    name = models.CharField(max_length=64)
    owner = models.CharField(max_length=200)
    beats = models.BigIntegerField(default=0)
    seen_at = models.DateTimeField()
    since = models.DateTimeField(default=timezone.now, help_text="When this owner gave its first sign.")

    class Meta:
        ordering = ["node", "name"]
        constraints = [models.UniqueConstraint(fields=["node", "name"], name="process_heartbeat_node_name")]

    def __str__(self) -> str:
        return self.name
