"""The data set that ships with the project, loaded over REST."""

from __future__ import annotations

from typing import Any

from vectors.datasets.digits import load_digits


def load(node: Any, *, rows: int | None = None) -> None:
    """Make the namespace `digits` on a node, with its first `rows` rows."""
    digits = load_digits()
    path = f"/namespaces/{digits.namespace}"
    node.call("PUT", path, {"dimension": digits.dimension, "metric": "cosine", "picture": digits.picture})
    some = list(zip(digits.ids, digits.values.tolist(), digits.metadata, strict=True))[:rows]
    body = {"vectors": [{"id": row, "values": values, "metadata": metadata} for row, values, metadata in some]}
    node.call("PUT", f"/vectors/batch?namespace={digits.namespace}", body)
