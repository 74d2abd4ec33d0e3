"""The topology as each process of a node knows it: the registry's at its owner, the placements' at every other node.

`views` are the picture, `reading` makes it of the rows, `cache` keeps it and knows when to read it anew.
"""

from cluster.topology.cache import topology, topology_committed, topology_forget
from cluster.topology.reading import placement_heard, read_topology
from cluster.topology.views import CopyView, PlacementView, ShardView, TopologyView

__all__ = [
    "CopyView",
    "PlacementView",
    "ShardView",
    "TopologyView",
    "placement_heard",
    "read_topology",
    "topology",
    "topology_committed",
    "topology_forget",
]
