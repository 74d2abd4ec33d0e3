"""What is known of a namespace: from its engine, and from the measures of its recall."""

from __future__ import annotations

from collections.abc import Iterable

from vectors.engine.namespace import NamespaceView
from vectors.engine.slots import SlotSet
from vectors.models import RecallMeasure
from vectors.query_processor.port import NamespaceInfo
from vectors.query_processor.translation import spec_of
from vectors.recall.comparing import indexed_rows, tuned_recall
from vectors.recall.measures import latest_of
from vectors.store.recovery import OpenShard


def namespace_infos(opened: OpenShard, names: Iterable[str], *, owned: SlotSet | None = None) -> list[NamespaceInfo]:
    """Return the descriptions of namespaces; with `owned`, rows of other slots are not counted.

    Raise NamespaceNotFound.
    """
    views = []
    for name in names:
        spec_of(opened.engine, name)
        view = opened.engine.view(name)
        assert view is not None
        views.append(view)
    indexed = {view.spec.uid: indexed_rows(view) for view in views}
    measures = latest_of(opened.head.shard_id) if any(indexed.values()) else {}
    return [_info(view, indexed[view.spec.uid], measures.get(view.spec.uid), owned) for view in views]


def _info(view: NamespaceView, indexed: int, measure: RecallMeasure | None, owned: SlotSet | None) -> NamespaceInfo:
    spec = view.spec
    # A promise of 1 is kept by exact searches, whatever the indexes can do.
    uses_index = indexed > 0 and spec.recall_target < 1.0
    known = measure if uses_index else None
    return NamespaceInfo(
        name=spec.name,
        uid=spec.uid,
        dimension=spec.dimension,
        metric=spec.metric,
        recall_target=spec.recall_target,
        picture=spec.picture,
        count=view.count if owned is None else view.only(owned).count,
        segments=len(view.frozen),
        tail_rows=sum(part.alive for part in view.parts) - sum(part.alive for part in view.frozen),
        size_bytes=sum(part.part.nbytes for part in view.parts),
        measured_recall=known.recall if known is not None else tuned_recall(view) if uses_index else None,
        indexed_rows=indexed,
        recall_measured_at=None if known is None else known.measured_at.isoformat(),
    )
