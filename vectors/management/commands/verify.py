"""`manage.py verify`: check every shard copy of the node on disk."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from vectors.errors import StorageError, WrongNode
from vectors.management.presence import require_node
from vectors.models import ShardHead
from vectors.store.verify import verify_shard


class Command(BaseCommand):
    """Check checksums, the continuity of the log, and that the engine follows from them."""

    help = (
        "Check the node's data: checksums of log and segments, a log without gaps, an engine that follows from them. "
        "Prints rows and a digest of each namespace (equal digests: equal contents). Exit status 1 on findings."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument("--shard", help="label of the shard to check (default: all)")

    def handle(self, *args: Any, shard: str | None = None, **options: Any) -> None:
        """Check and report."""
        require_node()
        heads = ShardHead.objects.order_by("label")
        if shard is not None:
            heads = heads.filter(label=shard)
            if not heads:
                raise CommandError(f"there is no shard {shard} on this node")
        findings = 0
        for head in heads:
            try:
                result = verify_shard(head, tell=self.stdout.write)
            except (StorageError, WrongNode) as error:
                raise CommandError(error.message) from error
            for name, (rows, digest) in result.digests.items():
                self.stdout.write(f"{result.shard}: namespace {name}: {rows} rows, digest {digest}")
            for note in result.notes:
                self.stdout.write(f"{result.shard}: {note}")
            for finding in result.findings:
                self.stderr.write(f"{result.shard}: {finding}")
            findings += len(result.findings)
        if findings:
            raise CommandError(f"{findings} findings", returncode=1)
        self.stdout.write("ok")
