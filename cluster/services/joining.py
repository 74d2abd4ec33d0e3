"""What a node sees to by itself, by beat: being switched on, registering itself with its primary, being found.

The environment only switches on: what the data dir holds, a registry or a placement, wins over every flag. A node that
was removed from its cluster does not come back by itself either.
"""

from __future__ import annotations

import logging
from urllib.parse import urlencode

from django.conf import settings
from django.db import transaction

from cluster.models import ClusterEvent, Placement, PlacementPush, Topology
from cluster.node_urls import check_own_url, node_url, own_url
from cluster.replication.moves import catch_ups_settle
from cluster.services.candidates import words_of
from cluster.services.changes import TASK, Unchanged, event_write, registry_change
from cluster.services.placements import placements_push_pending
from cluster.services.registry import RESERVED_NAMES, replication_enable
from cluster.transport.client import peer_client
from cluster.transport.errors import PeerRejected
from vectors.errors import InvalidInput, MLVectorDBError
from vectors.names import checked_name

logger = logging.getLogger(__name__)

PRIMARY_ROLE, REPLICA_ROLE = "primary", "replica"
_JOIN = "join_failed"


def replication_look_after() -> None:
    """Do what is due: switch on, join, say where this node is, push what was not acknowledged, settle catch-ups."""
    replication_switch_on()
    topology = Topology.objects.first()
    if topology is None or not topology.is_owner:
        if wants_to_join():
            replication_join()
        return
    _say_new_url()
    placements_push_pending()
    catch_ups_settle()


def replication_switch_on() -> bool:
    """Enable replication where the settings say that this node may have replicas and nothing speaks against it."""
    if settings.MLVDB_ENABLE_REPLICATION != PRIMARY_ROLE:
        return False
    return replication_enable(actor="settings")


def check_settings() -> None:
    """Raise InvalidInput when this node is to join others and was not told how; nothing is asked of one that did."""
    if not wants_to_join():
        return
    if not settings.MLVDB_REPLICA_NAME or not settings.MLVDB_PRIMARY_URL:
        raise InvalidInput(
            "a node started with --enable-replication replica needs --replica-name and --primary-url "
            "(MLVDB_REPLICA_NAME, MLVDB_PRIMARY_URL)"
        )
    checked_name(settings.MLVDB_REPLICA_NAME, field="MLVDB_REPLICA_NAME", reserved=RESERVED_NAMES)
    if node_url(settings.MLVDB_PRIMARY_URL, field="MLVDB_PRIMARY_URL") == check_own_url():
        raise InvalidInput(f"MLVDB_PRIMARY_URL {settings.MLVDB_PRIMARY_URL} is this node itself")


def wants_to_join() -> bool:
    """Whether this node was started as a replica and belongs to no cluster yet."""
    return (
        settings.MLVDB_ENABLE_REPLICATION == REPLICA_ROLE
        and not Topology.objects.exists()
        and not Placement.objects.exists()
    )


def replication_join() -> bool:
    """Register this node with the primary that the settings name; return whether it took it. Called until it does.

    A primary that has been replaced names its successor, which is asked then.
    """
    try:
        check_settings()
        url = node_url(settings.MLVDB_PRIMARY_URL, field="MLVDB_PRIMARY_URL")
        query = urlencode({"replica_id": settings.MLVDB_REPLICA_NAME, "replica_url": check_own_url()})
        try:
            _register(url, query)
        except PeerRejected as rejected:
            successor = rejected.peer_detail.get("primary_url")
            if rejected.peer_code != "not_primary" or not successor:
                raise
            _register(node_url(str(successor), field="MLVDB_PRIMARY_URL"), query)
    except MLVectorDBError as error:
        _note_failure(words_of(error))
        return False
    return True


def join_error() -> str:
    """Return why this node could not register itself the last time that it tried, empty when it never failed."""
    event = ClusterEvent.objects.filter(action=_JOIN).first()
    return "" if event is None else str((event.after or {}).get("error", ""))


def _register(url: str, query: str) -> None:
    peer_client().json(url, "POST", f"/replication/replicas?{query}", even_if_silent=True)
    logger.info("join_asked primary=%s", url)


def _note_failure(error: str) -> None:
    """Write down why, once for each reason: this is tried every few seconds."""
    if error.startswith(("not_authenticated", "protected_mode")):
        error += " (nodes know each other by MLVDB_CLUSTER_SECRET, the same on all of them)"
    logger.warning("join_failed primary=%s error=%s", settings.MLVDB_PRIMARY_URL, error)
    if join_error() == error:
        return
    with transaction.atomic():
        event_write(
            actor=TASK,
            action=_JOIN,
            subject=settings.MLVDB_REPLICA_NAME or settings.MLVDB_NODE_ID,
            after={"error": error, "primary_url": settings.MLVDB_PRIMARY_URL},
        )


def _say_new_url() -> None:
    """Tell the replicas when this node is reached at another URL than they were told."""
    document = PlacementPush.objects.values_list("document", flat=True).order_by("-epoch").first()
    if document is None or document["owner"]["url"] == own_url():
        return
    with registry_change(actor=TASK, action="own_url_changed", subject=settings.MLVDB_NODE_ID) as change:
        if document["owner"]["url"] == change.address.url:
            raise Unchanged
        change.before, change.after = {"url": document["owner"]["url"]}, {"url": change.address.url}
        change.epoch_raise()
