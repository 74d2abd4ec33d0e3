"""The only HTTP client between nodes: signed requests, one deadline for a whole call, no waiting for silent peers."""

from typing import Final

PROTOCOL: Final = 3
"""What nodes say to each other; only nodes of the same protocol form a cluster."""
