"""Rows of a namespace as a page shows them."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from urllib.parse import urlencode

import orjson

from mlvdb_site.http.browsable import readable
from vectors.admin.forms import STRING_ID
from vectors.admin.pictures import PictureSize, picture_uri
from vectors.engine.ids import id_of, key_of_text
from vectors.errors import InvalidInput
from vectors.query_processor import Hit, Record

SHOWN_NUMBERS = 6
OPEN_LINES = 12
OPEN_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A row in words: `link` is the query of the page that searches for more like it, `picture` a data URI or empty.

    `folded` metadata is long: the page shows it when asked.
    """

    id: str
    link: str
    numbers: str
    left_out: int
    metadata: str
    folded: bool
    picture: str
    score: str


def shown_row(row: Record | Hit, *, picture: PictureSize | None) -> ShownRow:
    """Return a row that was read with values and metadata as a page shows it."""
    assert row.values is not None
    assert row.metadata is not None
    metadata = _metadata_text(row.metadata)
    return ShownRow(
        id=id_text(row.key),
        link=urlencode(id_parameters(row.key)),
        numbers=", ".join(f"{value:.4g}" for value in row.values[:SHOWN_NUMBERS].tolist()),
        left_out=max(0, len(row.values) - SHOWN_NUMBERS),
        metadata=metadata,
        folded=metadata.count("\n") >= OPEN_LINES or len(metadata) > OPEN_CHARACTERS,
        picture="" if picture is None else picture_uri(row.values, picture),
        score=f"{row.score:.6g}" if isinstance(row, Hit) else "",
    )


def id_text(key: bytes) -> str:
    """Return an id as it stands in JSON, so that 7 and "7" differ, and control characters are seen."""
    return json.dumps(id_of(key), ensure_ascii=False)


def id_parameters(key: bytes, *, name: str = "id") -> dict[str, str]:
    """Return the query parameters that name an id."""
    text = str(id_of(key))
    try:
        plain = key_of_text(text) == key
    except InvalidInput:
        plain = False
    return {name: text} if plain else {name: text, "id_type": STRING_ID}


def _metadata_text(metadata: bytes) -> str:
    """Return an object's members in lines; without its braces, which every row would repeat."""
    text, _ = readable(orjson.loads(metadata), shorten=False)
    return textwrap.dedent(text[1:-1]).strip("\n")
