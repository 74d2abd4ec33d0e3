"""The newest probes of replicas and of shards' nodes, for their charts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from django.db.models import OuterRef, Q, Subquery

from cluster.admin.chart import Bar
from cluster.models import HealthCheck, Replica, Shard


def newest_probes(peers: type[Replica] | type[Shard], ids: Collection[int], count: int) -> Mapping[int, Sequence[Bar]]:
    """Return the newest `count` probes of each peer, oldest first, without reading the others.

    Two queries: where each one's newest begin, by its index, then these.
    """
    peer = "replica" if peers is Replica else "shard"
    own = HealthCheck.objects.filter(**{peer: OuterRef("pk")}).order_by("-id").values("id")
    first = peers.objects.filter(pk__in=ids).annotate(first=Subquery(own[count - 1 : count]))
    wanted = Q(pk__in=[])
    for peer_id, first_id in first.values_list("pk", "first"):
        wanted |= Q(**{f"{peer}_id": peer_id, "id__gte": first_id or 0})
    bars: dict[int, list[Bar]] = defaultdict(list)
    fields = (f"{peer}_id", "at", "ok", "health", "took_ms", "error")
    for peer_id, *bar in HealthCheck.objects.filter(wanted).order_by("id").values_list(*fields):
        bars[peer_id].append(Bar(*bar))
    return bars
