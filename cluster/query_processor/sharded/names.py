"""What a namespace is, for whoever plans over shards: the registry's word at its owner, what copies say elsewhere.

A replica of a coordinator has no registry. Its copies know the namespaces that have rows in them, from their logs; one
that has rows only on shards of other nodes is asked for there. Where two copies disagree (a namespace was dropped and
made again, and one has not heard), the one that was made last is meant.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from cluster.query_processor.means import means
from cluster.query_processor.sharded.picture import Picture
from cluster.query_processor.sharded.scatter import scatter
from cluster.services.namespaces import namespace_list, namespace_resolve
from vectors.engine.distances import Metric
from vectors.engine.namespace import NamespaceSpec
from vectors.errors import NamespaceNotFound
from vectors.models import Namespace
from vectors.namespace_uids import is_later
from vectors.query_processor import NamespaceInfo
from vectors.store.faults import storage_faults


def namespace_of(picture: Picture, name: str) -> NamespaceSpec | None:
    """Return a namespace; None when there is none. Raise ShardUnavailable where that cannot be told."""
    if picture.view.is_owner:
        return namespace_resolve(name)
    return _here([name]).get(name) or _elsewhere(picture).get(name)


def known_namespace(picture: Picture, name: str) -> NamespaceSpec:
    """Return a namespace that must be there; raise NamespaceNotFound."""
    spec = namespace_of(picture, name)
    if spec is None:
        raise NamespaceNotFound(f"there is no namespace {name}", field="namespace")
    return spec


def namespaces_of(picture: Picture) -> list[NamespaceSpec]:
    """Return all namespaces, sorted by name."""
    if picture.view.is_owner:
        return namespace_list()
    found = _elsewhere(picture) | _here()
    return [found[name] for name in sorted(found)]


def _here(names: Iterable[str] | None = None) -> dict[str, NamespaceSpec]:
    with storage_faults():
        rows = Namespace.objects.order_by("pk")
        if names is not None:
            rows = rows.filter(name__in=list(names))
        known = list(rows)
    # What one copy knows to have ended has ended, whether the others have heard of it or not.
    ended = {row.uid for row in known if row.dropped_at is not None}
    living: dict[str, Namespace] = {}
    for row in known:
        other = living.get(row.name)
        if row.uid not in ended and (other is None or is_later(row.uid, other.uid) is not False):
            living[row.name] = row
    return {
        name: NamespaceSpec(row.uid, name, row.dimension, cast(Metric, row.metric), row.recall_target, row.picture)
        for name, row in living.items()
    }


def _elsewhere(picture: Picture) -> dict[str, NamespaceSpec]:
    """Ask the shards on other nodes which namespaces they have."""
    questions = [
        picture.question(member, None, "namespace_details")
        for member in picture.sharding.members
        if not member.is_local and member.slots
    ]
    found = scatter(picture, questions, means())
    if found.failures:
        raise found.failure()
    infos: Iterable[NamespaceInfo] = (info for value in found.values for info in value)
    return {
        info.name: NamespaceSpec(
            info.uid, info.name, info.dimension, cast(Metric, info.metric), info.recall_target, info.picture
        )
        for info in infos
    }
