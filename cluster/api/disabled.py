"""The features that a node may have enabled, and what it says where they are not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Feature:
    """Something a node may have enabled."""

    name: str
    message: str

    @property
    def code(self) -> str:
        """The error code of a refused change."""
        return f"{self.name}_not_enabled"


REPLICATION = Feature("replication", "Replication is not enabled")
SHARDING = Feature("sharding", "Sharding is not enabled")
