"""A process whose engine lags behind the drop of a namespace writes to the new one of that name."""

from __future__ import annotations

import numpy as np

from vectors import services
from vectors.engine.ids import key_of
from vectors.query_processor import VectorBatch


def _rows(dimension: int) -> VectorBatch:
    return VectorBatch([key_of(1)], np.ones((1, dimension), np.float32), [b"{}"])


def test_a_first_insert_after_a_drop_elsewhere_fixes_another_dimension(shard) -> None:
    shard.queries.upsert_many(_rows(1), namespace="n")
    # As another process does it: this one's engine has not seen it yet.
    services.namespace_drop(shard.head.pk, "n")

    shard.queries.upsert_many(_rows(2), namespace="n")

    assert [info.dimension for info in shard.queries.namespace_details().value] == [2]
    assert shard.queries.count(namespace="n").value == 1
