"""The query processor of a node that may be one of many: MLVDB_QUERY_PROCESSOR by default."""

from cluster.query_processor.processor import ClusterQueryProcessor

__all__ = ["ClusterQueryProcessor"]
