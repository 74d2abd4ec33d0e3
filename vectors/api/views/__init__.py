"""The endpoints of one node's data: each parses, calls one method of the query processor, and serializes."""

from vectors.api.views.namespaces import NamespacesView, NamespaceView, ScrollView
from vectors.api.views.search import CountView, SearchBatchView, SearchView
from vectors.api.views.storage import StorageInfoView
from vectors.api.views.vectors import BatchView, DeleteView, FetchView, RowView, VectorsView

__all__ = [
    "BatchView",
    "CountView",
    "DeleteView",
    "FetchView",
    "NamespaceView",
    "NamespacesView",
    "RowView",
    "ScrollView",
    "SearchBatchView",
    "SearchView",
    "StorageInfoView",
    "VectorsView",
]
