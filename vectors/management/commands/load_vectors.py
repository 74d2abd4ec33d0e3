"""`manage.py load_vectors FILE`: vectors, ids and metadata from files into a namespace."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TextIO, cast

from django.core.management.base import BaseCommand, CommandError, CommandParser

from vectors.engine.distances import METRICS
from vectors.transfer.loading import Loaded, LoadRefused, check_source, load
from vectors.transfer.places import PlaceError, open_place
from vectors.transfer.progress import Progress
from vectors.transfer.sources import open_source
from vectors.transfer.text_files import BadFile

EXIT_INTERRUPTED = 130


class Command(BaseCommand):
    """Checks the files whole, then writes them batch by batch."""

    help = (
        "Load vectors into a namespace: through the running node of MLVDB_DATA_DIR, or --url; into the data dir itself"
        " when no node runs there. The files are checked before anything is written."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument("file", type=Path, help=".npy, .npz, .jsonl or .jsonl.gz")
        parser.add_argument("--namespace", default="default", help="where to (default: %(default)s)")
        parser.add_argument("--ids", type=Path, metavar="FILE", help="ids: .npy, .jsonl[.gz], or text, one a line")
        parser.add_argument(
            "--metadata", type=Path, metavar="FILE", help="metadata: .jsonl[.gz], line i belongs to row i"
        )
        parser.add_argument(
            "--id-field", metavar="NAME", help="field of the JSON lines that is the id (in .jsonl files: id)"
        )
        parser.add_argument(
            "--values-field", metavar="NAME", help="field of a .jsonl, or array of an .npz, with the vectors (values)"
        )
        parser.add_argument("--id-type", choices=["auto", "string"], default="auto", help="string: digits in a text"
                            " file of ids are strings too")  # fmt: skip
        parser.add_argument("--metric", choices=METRICS, help="of a new namespace (default: cosine)")
        parser.add_argument(
            "--batch", type=_positive, default=1000, metavar="ROWS", help="rows a request (%(default)s)"
        )
        parser.add_argument("--resume", action="store_true", help="begin at the first batch that is not there whole")
        parser.add_argument("--replace", action="store_true", help="row numbers as ids may replace rows that are there")
        parser.add_argument("--strict", action="store_true", help="refuse a metadata file longer than the vectors")
        parser.add_argument("--url", help="load into the node at this URL")
        parser.add_argument("--api-key", metavar="KEY", help="key with scope write (or the variable MLVDB_API_KEY)")

    def handle(self, *args: Any, **options: Any) -> None:
        """Load; whatever stands against it is one line and exit code 1."""
        try:
            loaded, where = self._load(options)
        except (BadFile, LoadRefused, PlaceError) as error:
            raise CommandError(str(error)) from None
        except KeyboardInterrupt:
            raise CommandError(
                "Stopped. The same command with --resume goes on.", returncode=EXIT_INTERRUPTED
            ) from None
        skipped = f" ({loaded.skipped:,} were there already)" if loaded.skipped else ""
        self.stdout.write(
            f"Loaded {loaded.rows:,} rows into namespace {options['namespace']} of {where}{skipped}:"
            f" {loaded.took_s:.1f} s, {loaded.rows_per_s:,.0f} rows/s"
        )

    def _load(self, options: dict[str, Any]) -> tuple[Loaded, str]:
        source = open_source(
            options["file"],
            ids=options["ids"],
            metadata=options["metadata"],
            id_field=options["id_field"],
            values_field=options["values_field"],
            id_strings=options["id_type"] == "string",
            strict=options["strict"],
        )
        out = cast(TextIO, self.stderr._out)
        checking = Progress(out, "checked", total=source.rows)
        try:
            checked = check_source(source, checking)
        finally:
            checking.finish()
        for note in source.notes:
            self.stderr.write(f"Note: {note}.", self.style.WARNING)
        place = open_place(url=options["url"], api_key=options["api_key"])
        try:
            loaded = load(
                source,
                place,
                options["namespace"],
                checked=checked,
                metric=options["metric"],
                batch_rows=options["batch"],
                resume=options["resume"],
                replace=options["replace"],
                progress=lambda done: Progress(out, "loaded", total=checked.rows, done=done),
            )
        finally:
            place.close()
        return loaded, place.name


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value
