"""Find handwritten digits that look alike, in one program: no server, no broker, nothing started, nothing left behind.

    python examples/similar_digits.py

With the URL of a running node the same data goes there instead, through the HTTP client:

    python examples/similar_digits.py http://127.0.0.1:8000
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Also without an installation: from a checkout.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from vectors.client import Client
from vectors.datasets import Digits, load_digits
from vectors.library import Index, QueryProcessor, StorageEngineInMemory, VectorDTO

NAMESPACE = "similar_digits"
QUERIES = 200
NEIGHBOURS = 5


def in_this_program(digits: Digits) -> None:
    """Search with the library: a storage engine in memory, an index, a query processor."""
    with StorageEngineInMemory() as storage:
        processor = QueryProcessor(storage_engine=storage, index=Index(space="cosine"))
        processor.upsert_many(
            [
                VectorDTO(values, metadata, id=row_id)
                for row_id, values, metadata in zip(digits.ids, digits.values, digits.metadata, strict=True)
            ],
            namespace=NAMESPACE,
        )
        print(f"{processor.get_namespace_count(NAMESPACE):,} digits in {processor.get_storage_info()['storage_type']}")

        hits = processor.find_similar(digits.values[41], top_k=NEIGHBOURS, namespace=NAMESPACE)
        show("most similar to digit-0042", hits)

        hits = processor.find_similar(digits.values[41], NEIGHBOURS, NAMESPACE, filter={"digit__ne": 4})
        show("the same, but no fours", hits)

        found = [
            [hit["metadata"]["digit"] for hit in processor.find_similar(query, NEIGHBOURS + 1, NAMESPACE)[1:]]
            for query in digits.values[:QUERIES]
        ]
        print(f"digits told from their neighbours: {share_right(digits, found):.1%}")


def on_a_node(digits: Digits, url: str) -> None:
    """Search with the client: arrays over HTTP."""
    with Client(url) as client:
        client.upsert(digits.values, ids=digits.ids, metadata=digits.metadata, namespace=NAMESPACE)
        print(f"{client.count(namespace=NAMESPACE):,} digits on {client.base_url}")

        hits = client.search(digits.values[41], top_k=NEIGHBOURS, namespace=NAMESPACE)
        show("most similar to digit-0042", [hit._asdict() for hit in hits])

        hits = client.search(id="digit-0042", top_k=NEIGHBOURS, filter={"digit__ne": 4}, namespace=NAMESPACE)
        show("the same, but no fours", [hit._asdict() for hit in hits])

        answers = client.search_batch(
            digits.values[:QUERIES], top_k=NEIGHBOURS + 1, with_values=False, namespace=NAMESPACE
        )
        found = [[hit.metadata["digit"] for hit in hits[1:] if hit.metadata] for hits in answers]
        print(f"digits told from their neighbours: {share_right(digits, found):.1%}")
        client.namespace_drop(NAMESPACE)


def share_right(digits: Digits, found: Sequence[Sequence[int]]) -> float:
    """Return how many of the first digits are what most of their neighbours are."""
    votes = [np.bincount(neighbours, minlength=10).argmax() for neighbours in found]
    return float(np.mean(np.array(votes) == digits.labels[: len(votes)]))


def show(title: str, hits: Sequence[dict[str, Any]]) -> None:
    """Print hits, one a line."""
    print(f"\n{title}:")
    for hit in hits:
        print(f"  {hit['id']}  a {hit['metadata']['name']:6}  score {hit['score']:.4f}")
    print()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        on_a_node(load_digits(), sys.argv[1])
    else:
        in_this_program(load_digits())
