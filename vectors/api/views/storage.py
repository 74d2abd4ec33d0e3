"""What this node holds."""

from __future__ import annotations

from rest_framework.request import Request
from rest_framework.response import Response

from mlvdb_site.http.views import NodeView
from vectors.api.answers import shard_headers
from vectors.api.options import CONSISTENCY_PARAMETERS, options_of
from vectors.query_processor import query_processor


class StorageInfoView(NodeView):
    """Totals of this node: vectors, bytes, namespaces (GET)."""

    parameters = {"GET": CONSISTENCY_PARAMETERS}

    def get(self, request: Request) -> Response:
        """Return the totals."""
        answer = query_processor().storage_info(options=options_of(request))
        info = answer.value
        per_namespace = dict(info.vectors_per_namespace)
        return Response(
            {
                "storage_type": "in-memory",
                "total_vectors": info.total_vectors,
                "storage_size_bytes": info.size_bytes,
                "namespaces": list(per_namespace),
                "vectors_per_namespace": per_namespace,
                "namespace_count": len(per_namespace),
                **info.sections,
            },
            headers=shard_headers(answer),
        )

    def get_view_name(self) -> str:
        """Return the title of the page."""
        return "Storage"
