"""Lines of text files, plain or gzip, with the errors that a person can act on."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson


class BadFile(ValueError):
    """Raised when a file cannot be loaded; the message names the file and the row or line."""


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, line) of a file; raise BadFile for an empty line that is not at the end."""
    empty = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                line = line.strip()
                if not line:
                    empty = empty or number
                    continue
                if empty:
                    raise BadFile(f"{path.name} line {empty} is empty")
                yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadFile(f"{path.name} is not a whole gzip file: {error}") from error
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror or error}") from error


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number from 1, object) of a JSON Lines file; raise BadFile for a line that is no JSON object."""
    for number, line in lines(path):
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise BadFile(f"{path.name} line {number} is not valid JSON: {error}") from None
        if type(value) is not dict:
            raise BadFile(f"{path.name} line {number} must be an object")
        yield number, value


def is_json_lines(path: Path) -> bool:
    """Return whether the name of a file says JSON Lines."""
    return path.name.removesuffix(".gz").endswith((".jsonl", ".ndjson"))
