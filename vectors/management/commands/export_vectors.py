"""`manage.py export_vectors NAMESPACE FILE`: the vectors of a namespace into one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TextIO, cast

import orjson
from django.core.management.base import BaseCommand, CommandError, CommandParser

from vectors.transfer.exporting import SUFFIXES, export_rows
from vectors.transfer.places import PlaceError, open_place
from vectors.transfer.progress import Progress


class Command(BaseCommand):
    """Reads a namespace page by page and lets the file appear when it is whole."""

    help = (
        "Export a namespace: from the running node of MLVDB_DATA_DIR, or --url; from the data dir itself when no node"
        " runs there. load_vectors reads the file back."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument("namespace")
        parser.add_argument("file", type=Path, help=" or ".join(SUFFIXES))
        parser.add_argument("--filter", metavar="JSON", help="only rows that match, such as '{\"price__lt\": 10}'")
        parser.add_argument("--page", type=int, default=1000, metavar="ROWS", help="rows a request (%(default)s)")
        parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
        parser.add_argument("--url", help="export from the node at this URL")
        parser.add_argument("--api-key", metavar="KEY", help="key with scope read (or the variable MLVDB_API_KEY)")

    def handle(self, *args: Any, **options: Any) -> None:
        """Export; whatever stands against it is one line and exit code 1."""
        path: Path = options["file"]
        namespace: str = options["namespace"]
        if not path.name.endswith(SUFFIXES):
            raise CommandError(f"{path.name}: files are {', '.join(SUFFIXES)}")
        if path.exists() and not options["overwrite"]:
            raise CommandError(f"{path} exists; --overwrite replaces it")
        if not path.parent.is_dir():
            raise CommandError(f"{path.parent} is no directory")
        condition = _filter(options["filter"])
        try:
            place = open_place(url=options["url"], api_key=options["api_key"])
            try:
                known = place.known(namespace)
                if known is None:
                    raise CommandError(f"there is no namespace {namespace} in {place.name}")
                total = known.rows if condition is None else place.count(namespace, filter=condition)
                progress = Progress(cast(TextIO, self.stderr._out), "exported", total=total)
                rows = place.rows(namespace, filter=condition, page_rows=options["page"])
                try:
                    count = export_rows(rows, path, dimension=known.dimension, progress=progress)
                finally:
                    progress.finish()
            finally:
                place.close()
        except PlaceError as error:
            raise CommandError(str(error)) from None
        except OSError as error:
            raise CommandError(f"{path}: {error.strerror or error}") from None
        self.stdout.write(
            f"Exported {count:,} rows of namespace {namespace} to {path}:"
            f" {progress.took_s:.1f} s, {progress.rows_per_s:,.0f} rows/s"
        )


def _filter(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise CommandError(f"--filter is not valid JSON: {error}") from None
    if type(value) is not dict:
        raise CommandError("--filter must be an object")
    return value
