"""Shards as the services of sharding look them up, and what speaks against a request for them."""

from __future__ import annotations

import math

from cluster.models import Shard, Topology
from cluster.states import ShardState
from vectors.errors import Conflict, InvalidInput, NotFound

HASH, ROUND_ROBIN = "hash", "round_robin"
STRATEGIES = (HASH, ROUND_ROBIN)

#: Words that are routes below `/sharding/shards`.
RESERVED_LABELS = frozenset({"health", "local", "redistribute-all"})

LARGEST_WEIGHT = 1e6
"""Beyond it shares could no longer be told apart in a plan."""

LARGEST_NUMBER = 2**16 - 1
"""The slot table has two bytes for the number of a shard."""


class ShardNotFound(NotFound):
    """Raised when no shard has that label."""

    code = "shard_not_found"


class ShardExists(Conflict):
    """Raised when a label or a URL is another shard's."""

    code = "shard_exists"


class ShardingNotEnabled(InvalidInput):
    """Raised for a change of shards on a node where sharding was not switched on."""

    code = "sharding_not_enabled"


class LastShard(Conflict):
    """Raised when the only shard that can own slots is to be removed."""

    code = "last_shard"


class ShardUnreachable(Conflict):
    """Raised when a shard that has slots is to be removed and its node does not answer; `detail`: rows, error.

    `rows` are those of the last probe that was answered: what is lost when it is removed by force.
    """

    code = "shard_unreachable"


class CannotCoordinate(Conflict):
    """Raised when a node that obeys another, as its replica or its shard, is to have shards."""

    code = "not_primary"


class StrategyFixed(Conflict):
    """Raised when another strategy is asked for than the one that was chosen when sharding was switched on."""

    code = "strategy_fixed"


def check_strategy(strategy: str) -> str:
    """Return a strategy; raise InvalidInput when there is none of that name."""
    if strategy not in STRATEGIES:
        raise InvalidInput(f"the sharding strategy is one of {', '.join(STRATEGIES)}", field="sharding_strategy")
    return strategy


def check_same_strategy(topology: Topology, strategy: str) -> None:
    """Raise StrategyFixed when a coordinator was switched on with another strategy."""
    if topology.strategy != strategy:
        raise StrategyFixed(
            f"this node's sharding strategy is {topology.strategy}, fixed when its shards were made; {strategy} was "
            "asked for",
            field="sharding_strategy",
        )


def check_coordinator() -> Topology:
    """Return this node's topology; raise ShardingNotEnabled where it has no shards."""
    topology = Topology.objects.filter(is_owner=True, sharding_enabled=True).first()
    if topology is None:
        raise ShardingNotEnabled("Sharding is not enabled")
    return topology


def check_weight(weight: float) -> None:
    """Raise InvalidInput for a weight that no plan can work with."""
    if not (math.isfinite(weight) and 0 < weight <= LARGEST_WEIGHT):
        raise InvalidInput(f"weight is more than 0 and at most {LARGEST_WEIGHT:g}", field="weight")


def shard_of(label: str) -> Shard:
    """Return a shard by its label; raise ShardNotFound."""
    shard = Shard.objects.filter(label=label).exclude(state=ShardState.REMOVED).first()
    if shard is None:
        raise ShardNotFound(f"there is no shard {label}", field="shard_id")
    return shard
