"""Paths of the vector endpoints; none ends with a slash.

The reserved words come before the id, which is anything else: slashes and line breaks included.
"""

from django.urls import path, register_converter

from vectors.api import views


class AnyTextConverter:
    """A path's rest, whatever is in it."""

    regex = r"(?s:.+)"

    def to_python(self, value: str) -> str:
        """Return the text."""
        return value

    def to_url(self, value: object) -> str:
        """Return the text; Django quotes it."""
        return str(value)


register_converter(AnyTextConverter, "anytext")

urlpatterns = [
    path("search", views.SearchView.as_view(), name="search"),
    path("search/batch", views.SearchBatchView.as_view(), name="search-batch"),
    path("count", views.CountView.as_view(), name="count"),
    path("vectors", views.VectorsView.as_view(), name="vectors"),
    path("vectors/batch", views.BatchView.as_view(), name="vectors-batch"),
    path("vectors/fetch", views.FetchView.as_view(), name="vectors-fetch"),
    path("vectors/delete", views.DeleteView.as_view(), name="vectors-delete"),
    path("vectors/<anytext:row_id>", views.RowView.as_view(), name="vector"),
    path("namespaces", views.NamespacesView.as_view(), name="namespaces"),
    path("namespaces/vectors", views.ScrollView.as_view(), name="namespace-vectors"),
    path("namespaces/<anytext:name>", views.NamespaceView.as_view(), name="namespace"),
    path("storage/info", views.StorageInfoView.as_view(), name="storage-info"),
]
