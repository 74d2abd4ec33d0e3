"""What of a shard copy a request may see and touch, where another node has planned it over shards (`port.Scope`).

The rows are looked at first, then the epoch of the copy's slots: rows that came or went with a newer change were not
yet there, or are refused with the change. The other way round, a change between the two looks would go unnoticed.
"""

from __future__ import annotations

from collections.abc import Sequence

from vectors.engine.namespace import NamespaceSpec, NamespaceView
from vectors.engine.parts import Part
from vectors.engine.shard import ShardEngine
from vectors.engine.slots import SlotSet
from vectors.errors import StaleScope
from vectors.query_processor.port import Scope

Places = Sequence[tuple[Part, int] | None]


def check_scope(engine: ShardEngine, scope: Scope | None) -> None:
    """Raise StaleScope when the copy's slots were changed after the request was planned: to be called last."""
    if scope is not None and engine.slots_epoch > scope.epoch:
        raise StaleScope(
            f"the slots of this copy were changed at epoch {engine.slots_epoch}, the request was planned at"
            f" {scope.epoch}",
            detail={"epoch": engine.slots_epoch},
        )


def owned_by(scope: Scope | None) -> SlotSet | None:
    """Return the slots whose rows count, None for all."""
    return None if scope is None else scope.owned


def is_meant(spec: NamespaceSpec, scope: Scope | None) -> bool:
    """Whether a namespace of this copy is not another one that only has the name of the one that is asked for."""
    meant = None if scope is None else scope.namespace
    return meant is None or meant.name != spec.name or meant.uid == spec.uid


def scoped_view(engine: ShardEngine, name: str, scope: Scope | None) -> NamespaceView | None:
    """Return what a request may see of a namespace, None where there is nothing. Raise StaleScope."""
    view, _ = scoped_view_and_places(engine, name, (), scope)
    return view


def scoped_view_and_places(
    engine: ShardEngine, name: str, keys: Sequence[bytes], scope: Scope | None
) -> tuple[NamespaceView | None, Places]:
    """Return what a request may see of a namespace, and of the places of keys in that state. Raise StaleScope."""
    view, places = engine.view_and_places(name, keys, slots=owned_by(scope))
    check_scope(engine, scope)
    if view is None or not is_meant(view.spec, scope):
        return None, [None] * len(keys)
    return view, places


def scoped_places(
    engine: ShardEngine, name: str, keys: Sequence[bytes], scope: Scope | None
) -> tuple[NamespaceSpec | None, Places]:
    """Return what a namespace is, None where it is not there for the request, and the places of keys it may see.

    Raise StaleScope.
    """
    spec, places = engine.spec_and_places(name, keys, slots=owned_by(scope))
    check_scope(engine, scope)
    if spec is None or not is_meant(spec, scope):
        return None, [None] * len(keys)
    return spec, places
