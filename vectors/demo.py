"""The demonstration: loads the handwritten digits into a running node over HTTP and shows a search in them."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from typing import TextIO

import numpy as np

from vectors.client import Client, ClientError, Hit, NotAuthenticated, Retries
from vectors.datasets import Digits, load_digits

QUERY_ID = "digit-0042"
TOP_K = 4
FILTERED = {"digit__in": [4, 9], "ink__lt": 0.25}

_SHADES = " ░▒▓█"
_BLACK = 16


def run(
    base_url: str, out: TextIO, *, api_key: str | None = None, once_loaded: Callable[[], None] = lambda: None
) -> None:
    """Load the digits into namespace `digits` unless they are there; print a search, its answer, where to click.

    `api_key` is needed where the node has keys; the environment's MLVDB_API_KEY is taken when it is None. `once_loaded`
    is called between loading and searching. Whatever goes wrong is one line: the node itself is running.
    """
    digits = load_digits()
    with Client(base_url, api_key or os.environ.get("MLVDB_API_KEY"), retries=Retries(attempts=8)) as client:
        try:
            loaded = _load(client, digits)
            once_loaded()
            hits = client.search(id=QUERY_ID, top_k=TOP_K, namespace=digits.namespace)
        except NotAuthenticated:
            print("The demonstration needs an API key with scope write: set MLVDB_API_KEY to one.", file=out)
            return
        except ClientError as error:
            print(f"The demonstration could not be loaded: {error}", file=out)
            return
    for line in _lines(base_url, digits, loaded=loaded, hits=hits, pictures=_pictures(hits, out)):
        print(line, file=out)
    out.flush()


def curl_line(base_url: str, body: object, *, namespace: str = Digits.namespace) -> str:
    """Return a search as a line for the shell."""
    return (
        f"curl -s {shlex.quote(f'{base_url}/search?namespace={namespace}')} -H 'Content-Type: application/json'"
        f" -d {shlex.quote(json.dumps(body))}"
    )


def _load(client: Client, digits: Digits) -> bool:
    """Make the data complete; return whether it was not. Ids are the rows' own, so a load cut short is carried on."""
    if client.count(namespace=digits.namespace) >= len(digits):
        return False
    client.namespace_put(digits.namespace, dimension=digits.dimension, metric="cosine", picture=digits.picture)
    client.upsert(digits.values, ids=digits.ids, metadata=digits.metadata, namespace=digits.namespace)
    return True


def _lines(base_url: str, digits: Digits, *, loaded: bool, hits: list[Hit], pictures: list[str]) -> list[str]:
    search = {"id": QUERY_ID, "top_k": TOP_K, "with_values": False}
    answer = [
        json.dumps({"id": hit.id, "metadata": hit.metadata, "score": hit.score}, ensure_ascii=False) for hit in hits
    ]
    return [
        "",
        f"Demonstration: {len(digits):,} handwritten digits (UCI) {'loaded into' if loaded else 'are in'} namespace"
        f" {digits.namespace}.",
        f"The {TOP_K} most similar to {QUERY_ID}; paste this line into another terminal:",
        "",
        f"  {curl_line(base_url, search)}",
        "",
        *(
            f"  {'[' if place == 0 else ' '}{line}{']' if place == len(answer) - 1 else ','}"
            for place, line in enumerate(answer)
        ),
        "",
        *pictures,
        "With a filter on metadata:",
        "",
        f"  {curl_line(base_url, {**search, 'filter': FILTERED})}",
        "",
        f"Browse them as pictures, and search for more like one: {base_url}/admin/vectors/namespace/",
        f"Try every endpoint in the browser: {base_url}/search?namespace={digits.namespace}",
        "",
    ]


def _pictures(hits: list[Hit], out: TextIO) -> list[str]:
    """Return hits side by side as shaded blocks, nothing where the terminal cannot show them."""
    try:
        _SHADES.encode(getattr(out, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return []
    drawn = [_shaded(hit.values) for hit in hits if hit.values is not None]
    return [*("  " + "  ".join(row).rstrip() for row in zip(*drawn, strict=True)), ""]


def _shaded(values: np.ndarray) -> list[str]:
    levels = np.rint(values.reshape(8, 8) / _BLACK * (len(_SHADES) - 1)).astype(int)
    return ["".join(2 * _SHADES[level] for level in row) for row in levels.tolist()]
