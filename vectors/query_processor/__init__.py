"""The query processor: the port that views call, and the single-node implementation of it."""

from vectors.query_processor.local import LocalQueryProcessor
from vectors.query_processor.port import (
    DEFAULT_OPTIONS,
    Answer,
    Fetched,
    Hit,
    NamespaceInfo,
    Page,
    QueryProcessor,
    Record,
    RequestOptions,
    SearchRequest,
    ShardAccount,
    StorageInfo,
    VectorBatch,
    WriteResult,
)
from vectors.query_processor.selection import query_processor

__all__ = [
    "DEFAULT_OPTIONS",
    "Answer",
    "Fetched",
    "Hit",
    "LocalQueryProcessor",
    "NamespaceInfo",
    "Page",
    "QueryProcessor",
    "Record",
    "RequestOptions",
    "SearchRequest",
    "ShardAccount",
    "StorageInfo",
    "VectorBatch",
    "WriteResult",
    "query_processor",
]
