"""What a coordinator sees to by itself, by beat: being switched on, and everything that was not brought to its end.

The settings only switch on: what the data dir holds, a registry, a placement or an assignment, wins over every flag.
"""

from __future__ import annotations

import logging

from django.conf import settings

from cluster.models import Assignment, Placement, Topology
from cluster.moves.control import fill_now
from cluster.services.full_replicas import full_replicas_settle
from cluster.services.namespace_errands import errands_deliver_pending
from cluster.services.sharding import sharding_begin
from cluster.services.sharding_assignments import assignments_push_pending
from cluster.services.sharding_gates import gates_settle
from cluster.services.sharding_removal import drained_settle, removed_settle
from cluster.services.sharding_rows import HASH, StrategyFixed, check_same_strategy
from cluster.services.succession_checks import succession_go_on
from vectors.errors import MLVectorDBError

__all__ = ["StrategyFixed", "check_settings", "sharding_look_after", "sharding_switch_on"]

logger = logging.getLogger(__name__)


def sharding_look_after() -> None:
    """Do what is due: switch on, tell nodes and shards what they have not heard, fill, open, drain and let go."""
    sharding_switch_on()
    if not Topology.objects.filter(is_owner=True, sharding_enabled=True).exists():
        return
    for step in (
        assignments_push_pending,
        succession_go_on,
        gates_settle,
        errands_deliver_pending,
        fill_now,
        drained_settle,
        removed_settle,
        full_replicas_settle,
    ):
        try:
            step()
        except MLVectorDBError as error:
            # What ails one of these is not the others' fault; the next sweep tries it again.
            logger.warning("sharding_sweep_failed step=%s error=%s", step.__name__, error.message)


def sharding_switch_on() -> bool:
    """Enable sharding where the settings say so and nothing speaks against it; return whether it was enabled now.

    Called before a node's processes are forked as well: what follows from it waits for beat.
    """
    if not settings.MLVDB_ENABLE_SHARDING:
        return False
    row = Topology.objects.first()
    if row is not None and (row.sharding_enabled or not row.is_owner):
        return False
    if Placement.objects.exists() or Assignment.objects.exists():
        return False
    return sharding_begin(
        strategy=settings.MLVDB_SHARDING_STRATEGY or HASH, shards=settings.MLVDB_SHARDS, actor="settings"
    )


def check_settings() -> None:
    """Raise StrategyFixed when the settings name another strategy than the one this node's shards were made with."""
    row = Topology.objects.filter(sharding_enabled=True).first()
    if row is not None and settings.MLVDB_SHARDING_STRATEGY:
        check_same_strategy(row, settings.MLVDB_SHARDING_STRATEGY)
