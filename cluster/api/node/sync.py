"""Full sync between nodes: the offer, chunks of files, the install. See `cluster.replication.full_sync`."""

from __future__ import annotations

from typing import Any, ClassVar

from rest_framework.request import Request
from rest_framework.response import Response

from cluster.api.node.base import CLUSTER, EPOCH, TERM, NodeRouteView, text_parameter, whole_parameter
from cluster.api.node.log import own_copy
from cluster.services.hearing import set_aside_note
from mlvdb_site.http.errors import RequestError
from mlvdb_site.http.parameters import QueryParameter
from vectors.store import install, staging
from vectors.store.offer import SyncOffer

_FENCE = (CLUSTER, EPOCH, TERM)


class OfferView(NodeRouteView):
    """The offer of a full sync. Offering the same again is how a sender resumes."""

    parameters: ClassVar = {"POST": _FENCE}

    def post(self, request: Request, uid: str) -> Response:
        """Return how many bytes of each file are here."""
        own_copy(request, uid)
        return Response(staging.offer_take(_offer(request, uid)))


class FileView(NodeRouteView):
    """A chunk of a file of the offer."""

    parameters: ClassVar = {
        "PUT": (
            *_FENCE,
            QueryParameter("path", "The file, as the offer names it.", required=True),
            QueryParameter("offset", "Where in the file the bytes begin.", required=True),
        )
    }

    def put(self, request: Request, uid: str) -> Response:
        """Write the bytes and return where the next ones begin."""
        own_copy(request, uid)
        path, offset = text_parameter(request, "path"), whole_parameter(request, "offset")
        return Response({"size": staging.chunk_write(uid, path, offset, self.binary_body(request))})


class InstallView(NodeRouteView):
    """The end of a full sync: the files become the copy."""

    parameters: ClassVar = {"POST": _FENCE}

    def post(self, request: Request, uid: str) -> Response:
        """Install the offer and return the position of the copy then."""
        own_copy(request, uid)
        installed = install.install(uid, _offer(request, uid))
        if installed.set_aside is not None or installed.segments is not None:
            set_aside_note(shard_uid=uid, aside=installed.set_aside, segments=installed.segments)
        return Response({"term": installed.position.term, "seq": installed.position.seq})


def _offer(request: Request, uid: str) -> SyncOffer:
    document: Any = request.data
    if not isinstance(document, dict):
        raise RequestError("the body must be an offer", field="body")
    offer = SyncOffer.from_document(document)
    if offer.shard != uid:
        raise RequestError("the offer is of another shard", field="shard")
    return offer
