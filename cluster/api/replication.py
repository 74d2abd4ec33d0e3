"""Replication over HTTP: the replicas of this node, their health, sync, promotion (API §3).

What waits for other nodes takes one of the slots that the requests of a process have for that.
"""

from __future__ import annotations

from typing import Any, ClassVar

from django.conf import settings
from rest_framework.request import Request
from rest_framework.response import Response

from cluster.api.actors import actor_of
from cluster.api.enabled import EnabledView
from cluster.api.query import FORCE, NAMESPACE, REPLICA_ID, REPLICA_URL, SHARD_ID
from cluster.health.rounds import probe_now
from cluster.models import Replica, ShardCopy
from cluster.overview import replication_info
from cluster.query_processor.means import means
from cluster.services import joining, registry, shard_replicas
from cluster.services.failover import shard_look
from cluster.services.handover import replica_promote
from cluster.services.promotion import Promotion, promote
from cluster.services.removal import replica_remove


class ReplicationInfoView(EnabledView):
    """The replicas of this node and how far they are; on a replica, the copies that it knows of."""

    parameters: ClassVar = {"GET": ()}
    title = "Replication"

    def get(self, request: Request) -> Response:
        """Return them."""
        return Response(replication_info())

    def not_enabled(self) -> dict[str, Any]:
        """Return the message, and how a node that was started as a replica gets on with joining."""
        answer = super().not_enabled()
        if joining.wants_to_join():
            answer["joining"] = {
                "primary_url": settings.MLVDB_PRIMARY_URL,
                "replica_id": settings.MLVDB_REPLICA_NAME,
                "last_error": joining.join_error() or None,
            }
        return answer


class ReplicasView(EnabledView):
    """Add a replica; its full sync starts at once. Its node need not be up yet."""

    parameters: ClassVar = {"POST": (REPLICA_ID, REPLICA_URL, SHARD_ID)}
    title = "Replicas"
    examples: ClassVar = {"POST": {"replica_id": "replica_1", "replica_url": "http://127.0.0.1:8002"}}

    def post(self, request: Request) -> Response:
        """Add it; the same id and URL again change nothing."""
        given = self.given(request, required=("replica_id", "replica_url"))
        label = given.get("shard_id", "")
        with means().waits.slot():
            registry.check_owner()
            elsewhere = shard_replicas.remote_shard(label)
            added: dict[str, Any] = {
                "name": given["replica_id"],
                "url": given["replica_url"],
                "actor": actor_of(request),
            }
            replica: Replica | ShardCopy
            if elsewhere is None:
                replica, is_new = registry.replica_add(**added, shard=label)
            else:
                replica, is_new = shard_replicas.copy_add(elsewhere, **added)
        message = f"Replica {replica.name} {'added' if is_new else 'is there already'}"
        answer: dict[str, Any] = {"status": "success", "message": message}
        if replica.last_error:
            answer["last_error"] = replica.last_error
        return Response(answer)


class ReplicasHealthView(EnabledView):
    """Whether each replica is healthy: all are probed now, at once."""

    parameters: ClassVar = {"GET": ()}
    title = "Health of all replicas"

    def get(self, request: Request) -> Response:
        """Probe all replicas."""
        with means().waits.slot():
            return Response({"replicas_health": probe_now(list(Replica.objects.all())) | shard_replicas.copies_check()})


class ReplicaView(EnabledView):
    """Remove a replica. Its node keeps its copy, read-only, and can be added again."""

    parameters: ClassVar = {"DELETE": (FORCE,)}
    title = "Replica"

    def delete(self, request: Request, replica_id: str) -> Response:
        """Remove it, once a majority of the members that stay has all that it has; with `force` at once."""
        given = self.given(request)
        force = self.given_flag(given, "force")
        with means().waits.slot():
            copy = shard_replicas.copy_of(replica_id)
            if copy is None:
                replica_remove(name=replica_id, force=force, actor=actor_of(request))
            else:
                shard_replicas.copy_remove(copy.shard, name=replica_id, force=force, actor=actor_of(request))
        return Response({"status": "success", "message": f"Replica {replica_id} removed"})


class ReplicaHealthView(EnabledView):
    """Probe a replica now."""

    parameters: ClassVar = {"GET": ()}
    title = "Health of a replica"

    def get(self, request: Request, replica_id: str) -> Response:
        """Probe it."""
        with means().waits.slot():
            copy = shard_replicas.copy_of(replica_id)
            is_healthy = (
                registry.replica_check(name=replica_id)
                if copy is None
                else shard_replicas.copy_check(copy.shard, name=replica_id)
            )
        return Response({"replica_id": replica_id, "is_healthy": is_healthy})


class ReplicaSyncView(EnabledView):
    """Start a catch-up, or the full sync that a copy needs."""

    parameters: ClassVar = {"POST": (NAMESPACE,)}
    title = "Sync of a replica"

    def post(self, request: Request, replica_id: str) -> Response:
        """Start it; the move that is answered shows how far it is."""
        given = self.given(request)
        copy = shard_replicas.copy_of(replica_id)
        if copy is not None:
            return self._of_shard(request, copy, given.get("namespace"))
        move = registry.replica_sync(name=replica_id, namespace=given.get("namespace"), actor=actor_of(request))
        message = f"{move.get_kind_display().capitalize()} of replica {replica_id} started"
        return Response({"status": "success", "message": message, "move": move.pk})

    def _of_shard(self, request: Request, copy: ShardCopy, namespace: str | None) -> Response:
        """Have the node of a shard do it; the move is in that node's list of moves."""
        with means().waits.slot():
            begun = shard_replicas.copy_sync(copy.shard, name=copy.name, namespace=namespace, actor=actor_of(request))
        message = f"{begun['kind'].capitalize()} of replica {copy.name} started by shard {copy.shard.label}"
        return Response({"status": "success", "message": message, "move": begun["move"], "move_at": copy.shard.url})


class ReplicaPromoteView(EnabledView):
    """Make a replica the primary of its shard; this node, or the node of that shard, becomes its replica."""

    parameters: ClassVar = {"POST": (FORCE,)}
    title = "Promotion of a replica"

    def post(self, request: Request, replica_id: str) -> Response:
        """Hand over to it."""
        given = self.given(request)
        how: dict[str, Any] = {"force": self.given_flag(given, "force"), "actor": actor_of(request)}
        with means().waits.slot():
            copy = shard_replicas.copy_of(replica_id)
            if copy is None:
                promoted = replica_promote(name=replica_id, **how)
            else:
                promoted = shard_replicas.copy_promote(copy.shard, name=replica_id, **how)
                shard_look(copy.shard_id)
        return Response(_promoted(promoted, f"Replica {replica_id} is the primary now, in term {promoted.term}"))


class PromoteView(EnabledView):
    """On a replica: make this node the primary."""

    parameters: ClassVar = {"POST": (FORCE,)}
    title = "Promotion"

    def post(self, request: Request) -> Response:
        """Take over; without `force` only when the primary is gone and no other member is known to have more."""
        given = self.given(request)
        with means().waits.slot():
            promoted = promote(force=self.given_flag(given, "force"), actor=actor_of(request))
        already = "now" if promoted.changed else "already"
        return Response(_promoted(promoted, f"This node is the primary {already}, in term {promoted.term}"))


def _promoted(promoted: Promotion, message: str) -> dict[str, Any]:
    """Return the answer to a promotion; `warning` says what may have been lost."""
    warning = {"warning": promoted.warning} if promoted.warning else {}
    return {"status": "success", "message": message, "term": promoted.term, "epoch": promoted.epoch, **warning}
