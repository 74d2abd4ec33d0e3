"""Which query processor this node answers with: the seam through which a cluster takes over the views."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import cast

from django.conf import settings
from django.utils.module_loading import import_string

from vectors.query_processor.port import QueryProcessor


def query_processor() -> QueryProcessor:
    """Return the query processor named by MLVDB_QUERY_PROCESSOR (one per process, stateless)."""
    return _instance(settings.MLVDB_QUERY_PROCESSOR)


def query_processor_for(request_checkpoint: Callable[[str], object]) -> QueryProcessor:
    """Return a query processor of its own, for a program that does the node's background work itself.

    `request_checkpoint` is called with a shard's uid when a checkpoint of it is due.
    """
    return cast(QueryProcessor, import_string(settings.MLVDB_QUERY_PROCESSOR)(request_checkpoint=request_checkpoint))


@cache
def _instance(path: str) -> QueryProcessor:
    return cast(QueryProcessor, import_string(path)())
