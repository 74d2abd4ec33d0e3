"""The query processor: the port that views call, and the single-node implementation of it."""

from vectors.query_processor.local import LocalQueryProcessor
from vectors.query_processor.port import (
    DEFAULT_OPTIONS,
    WHAT_IS_THERE,
    Answer,
    Fetched,
    Hit,
    NamespaceInfo,
    Page,
    QueryProcessor,
    Record,
    RequestOptions,
    Scope,
    SearchRequest,
    ShardAccount,
    StorageInfo,
    VectorBatch,
    WriteResult,
)
from vectors.query_processor.selection import query_processor, query_processor_for

__all__ = [
    "DEFAULT_OPTIONS",
    "WHAT_IS_THERE",
    "Answer",
    "Fetched",
    "Hit",
    "LocalQueryProcessor",
    "NamespaceInfo",
    "Page",
    "QueryProcessor",
    "Record",
    "RequestOptions",
    "Scope",
    "SearchRequest",
    "ShardAccount",
    "StorageInfo",
    "VectorBatch",
    "WriteResult",
    "query_processor",
    "query_processor_for",
]
