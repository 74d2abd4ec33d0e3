"""`manage.py bench`: how fast this machine searches at which recall, and writes: one table, and a picture."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from vectors.bench.curve_picture import picture
from vectors.bench.data import BenchData, held_out, random_rows
from vectors.bench.engine_side import engine_measures
from vectors.bench.load import LoadFailed
from vectors.bench.measures import Measure, table
from vectors.bench.node_side import http_measures
from vectors.bench.private_node import NodeFailed, private_node
from vectors.client import ClientError
from vectors.transfer.places import API_KEY_VARIABLE, PlaceError, open_place
from vectors.transfer.sources import open_source
from vectors.transfer.text_files import BadFile


class Command(BaseCommand):
    """Measures the engine in this process, then a node of its own, or the one at `--url`."""

    help = (
        "Measure search (top 10, cosine) at several recalls, and ingest, in the engine and over HTTP: on a node started"
        " for it in a temporary directory, or on the one at --url, in a namespace that is dropped afterwards. Rows of"
        " the file are taken out to be the queries."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument("file", type=Path, nargs="?", help="rows to measure with: .npy or .npz (default: made up)")
        parser.add_argument("--rows", type=int, help="how many rows (default: the file's, or 20,000)")
        parser.add_argument("--dim", type=int, default=384, help="dimension of random rows (%(default)s)")
        parser.add_argument("--seconds", type=float, default=3.0, help="length of each measurement (%(default)s)")
        parser.add_argument("--connections", type=int, default=8, help="connections of the load (%(default)s)")
        parser.add_argument("--queries", type=int, default=500, help="different queries (%(default)s)")
        parser.add_argument(
            "--picture", metavar="FILE.svg", type=Path, help="draw recall and throughput into this file"
        )
        parser.add_argument("--engine-only", action="store_true", help="leave out what goes over HTTP")
        parser.add_argument("--url", help="measure the node at this URL")
        parser.add_argument("--api-key", metavar="KEY", help="key with scope write (or the variable MLVDB_API_KEY)")

    def handle(self, *args: Any, **options: Any) -> None:
        """Measure and print; whatever stands against it is one line and exit code 1."""
        for name in ("rows", "dim", "connections", "queries", "seconds"):
            if options[name] is not None and options[name] <= 0:
                raise CommandError(f"--{name} must be above 0")
        target: Path | None = options["picture"]
        if target is not None and not target.parent.is_dir():
            raise CommandError(f"--picture: there is no directory {target.parent}")
        data = BenchData(*held_out(self._rows(options), queries=options["queries"]))
        size = f"{len(data.rows):,} rows × {data.rows.shape[1]}"
        self.stdout.write(
            f"{size}, {len(data.queries)} others as queries, top 10 by cosine; {_machine()}; numpy {np.__version__}"
        )
        measures = engine_measures(data, seconds=options["seconds"], min_rows=settings.MLVDB_INDEX_MIN_ROWS)
        if not options["engine_only"]:
            try:
                measures += self._over_http(data, options)
            except (ClientError, NodeFailed, LoadFailed, PlaceError) as error:
                raise CommandError(str(error)) from None
        for line in table(measures):
            self.stdout.write(line)
        if target is not None:
            self._draw(measures, target, f"{size}, {_machine()}")

    def _over_http(self, data: BenchData, options: dict[str, Any]) -> list[Measure]:
        def measure(url: str) -> list[Measure]:
            return http_measures(
                data,
                url,
                api_key=options["api_key"] or (os.environ.get(API_KEY_VARIABLE) if options["url"] else None),
                seconds=options["seconds"],
                connections=options["connections"],
                min_rows=settings.MLVDB_INDEX_MIN_ROWS,
            )

        if options["url"]:
            open_place(url=options["url"], api_key=None).close()
            return measure(options["url"].rstrip("/"))
        with private_node(settings.BASE_DIR / "manage.py") as url:
            return measure(url)

    def _draw(self, measures: list[Measure], target: Path, title: str) -> None:
        try:
            target.write_text(picture(measures, title=title))
        except OSError as error:
            raise CommandError(str(error)) from None
        self.stdout.write(f"{target} drawn")

    def _rows(self, options: dict[str, Any]) -> np.ndarray:
        if options["file"] is None:
            return random_rows(options["rows"] or 20_000, options["dim"])
        try:
            source = open_source(options["file"])
            count = options["rows"] or source.rows or 2**62
            parts: list[np.ndarray] = []
            for batch in source.batches(8192):
                parts.append(batch.values[: count - batch.start])
                if batch.start + len(batch.ids) >= count:
                    break
            return np.concatenate(parts)
        except BadFile as error:
            raise CommandError(str(error)) from None


def _machine() -> str:
    model = platform.processor() or platform.machine()
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip()
    except (OSError, IndexError):
        pass
    return f"{os.cpu_count()} × {model}"
