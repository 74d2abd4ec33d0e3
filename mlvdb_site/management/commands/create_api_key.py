"""Make an API key and print it, this once."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import connection

from mlvdb_site.keys import key_create
from mlvdb_site.models import ApiKey, Scope


class Command(BaseCommand):
    """`manage.py create_api_key NAME --scope read --scope write`."""

    help = "Make an API key of this node and print it. From then on every request needs a key or a login."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take the name and the scopes."""
        parser.add_argument("name", help="who or what will use the key")
        parser.add_argument(
            "--scope",
            action="append",
            choices=Scope.values,
            dest="scopes",
            help="what it allows; may be repeated (default: read)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the key on standard output and nothing else there, so that a script can take it."""
        if ApiKey._meta.db_table not in connection.introspection.table_names():
            # A node that is to listen on another address than loopback needs its first key before its first start.
            call_command("migrate", verbosity=0)
        try:
            key, text = key_create(name=options["name"], scopes=options["scopes"] or [Scope.READ.value])
        except ValueError as error:
            raise CommandError(str(error)) from error
        self.stderr.write(f"Key of {key.name} with {', '.join(key.scopes)}; it is shown only now:")
        self.stdout.write(text)
