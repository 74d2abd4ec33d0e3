"""`manage.py promote`: make this node, a replica, the primary of its shard."""

from __future__ import annotations

import getpass
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from cluster.services.promotion import promote
from vectors.errors import MLVectorDBError
from vectors.management.presence import require_node


class Command(BaseCommand):
    """Promote the node of the data dir; its server may be running, and should."""

    help = (
        "Make this node, a replica, the primary of its shard when the old one is gone. Refused while that answers, "
        "while a member is known to have more, and with too few votes. See docs/promotion.md."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "--force",
            action="store_true",
            help="go on all the same: writes that this copy lacks are lost, or set aside on the other nodes",
        )

    def handle(self, *args: Any, force: bool = False, **options: Any) -> None:
        """Promote and report."""
        require_node()
        try:
            promoted = promote(force=force, actor=f"command line ({_user()})")
        except MLVectorDBError as error:
            raise CommandError(error.message) from error
        already = "" if promoted.changed else "already "
        self.stdout.write(
            f"This node is {already}the primary of {promoted.shard}: term {promoted.term}, epoch {promoted.epoch}."
        )
        if promoted.warning:
            self.stderr.write(f"Warning: {promoted.warning}.")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown user"
