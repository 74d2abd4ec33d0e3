"""`manage.py checkpoint`: turn the log's tail into segments now, and merge and index them."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from vectors.errors import MLVectorDBError
from vectors.management.presence import require_node
from vectors.models import Lease, ShardHead
from vectors.store.checkpoint import checkpoint_run, is_crowded
from vectors.store.leases import checkpoint_lease
from vectors.store.merging import merge_due, merge_run

_RETRY_S = 0.2


class Command(BaseCommand):
    """Checkpoint every shard copy of the node, and merge its segments, in this process."""

    help = (
        "Turn the tail of the log into segments, prune the log, and merge and index segments, in this process; may run "
        "beside a serving node."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument("--shard", help="label of the shard to checkpoint (default: all)")
        parser.add_argument(
            "--wait",
            type=float,
            default=60.0,
            metavar="SECONDS",
            help="how long to wait for another process that is at it (default: 60)",
        )

        parser.add_argument("--no-merge", action="store_true", help="leave the segments as they are")

    def handle(
        self, *args: Any, shard: str | None = None, wait: float = 60.0, no_merge: bool = False, **options: Any
    ) -> None:
        """Checkpoint, merge and report."""
        require_node()
        heads = ShardHead.objects.order_by("label")
        if shard is not None:
            heads = heads.filter(label=shard)
            if not heads:
                raise CommandError(f"there is no shard {shard} on this node")
        for head in heads:
            try:
                if is_crowded(head):
                    self._merge(head)
                self._checkpoint(head, wait)
                if not no_merge:
                    self._merge(head)
            except MLVectorDBError as error:
                raise CommandError(f"{head.label}: {error.message}") from error

    def _checkpoint(self, head: ShardHead, wait_s: float) -> None:
        wanted_seq = head.last_seq
        deadline = time.monotonic() + max(wait_s, 0.0)
        owner = f"{socket.gethostname()}:{os.getpid()}"
        while True:
            result = checkpoint_run(head.uid, owner=owner)
            if result is not None:
                self.stdout.write(
                    f"{result.shard}: seq {result.seq}, manifest {result.manifest}, {result.segments_written} segments,"
                    f" {result.rows_written} rows, {result.bytes_written} bytes, {result.took_s:.2f} s"
                )
                return
            head.refresh_from_db()
            if head.manifest_seq >= wanted_seq:
                self.stdout.write(f"{head.label}: seq {head.manifest_seq}, nothing to do")
                return
            if time.monotonic() > deadline:
                holder = Lease.objects.filter(name=checkpoint_lease(head.pk)).values_list("owner", flat=True).first()
                raise CommandError(f"{head.label}: {holder or 'another process'} is at it for more than {wait_s:g} s")
            time.sleep(min(_RETRY_S, settings.MLVDB_LEASE_S / 5))

    def _merge(self, head: ShardHead) -> None:
        head.refresh_from_db()
        if not merge_due(head):
            return
        result = merge_run(head.uid, owner=f"{socket.gethostname()}:{os.getpid()}")
        if result is None:
            self.stdout.write(f"{head.label}: another process merges segments of this node")
        elif result.steps:
            self.stdout.write(
                f"{head.label}: {result.merges} merges, {result.indexes} indexes, {result.rows_written} rows,"
                f" {result.bytes_written} bytes, {result.took_s:.2f} s"
            )
