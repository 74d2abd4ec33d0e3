"""`manage.py serve`: run one node, with everything it needs, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import sys
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from mlvdb_site.command_line import DEMO_OPTION, add_serve_options
from mlvdb_site.processes.output import Terminal
from mlvdb_site.processes.serving import EXIT_REFUSED, NodeServing, Refused


class Command(BaseCommand):
    """Start the node; its options became settings before Django was loaded (`mlvdb_site.command_line`)."""

    help = "Run this node: web workers, Celery workers, beat, and a private broker when none is set."
    # The checks would load every view here, in the one process that needs none of them.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options of API §1."""
        add_serve_options(parser)
        parser.add_argument(
            DEMO_OPTION,
            action="store_true",
            help="Run a small cluster, with two more nodes on the next two ports, and load it with real data.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Serve; a start that is refused is one line and exit code 2."""
        node = NodeServing(files=settings.NODE_FILES, terminal=Terminal(), demo=options["demo"])
        try:
            code = node.run()
        except Refused as error:
            raise CommandError(str(error), returncode=EXIT_REFUSED) from None
        if code:
            sys.exit(code)
