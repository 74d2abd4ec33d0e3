"""How far a search must look for the recall that is asked for.

A true neighbour is found if its cell is within the reach of the search and if it is among the rows that codes put
first. For queries whose neighbours are known, the reach of the cell and the rank by codes of each neighbour say at once
what every setting would have found: the share of neighbours within `reach` times the share with a code rank of at most
`count`. Nothing is tried out; the cheapest setting is read off. What is missed lies around few hard queries, so many
are needed, but the ranks by codes, which cost most, are looked up for some of them only. Neighbours that are far away
are missed by either, and the ranks among all codes are taken for those among the codes probed, of which there are
fewer: so a setting finds rather more than is said here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVELS = (0.8, 0.9, 0.95, 0.97, 0.98, 0.985, 0.99, 0.993, 0.995, 0.997, 0.998, 0.999)
"""Recalls for which settings are kept, besides the target of the namespace."""

_FEWEST_COUNT = 60
"""Near copies differ by less than their codes tell; there are more of them around queries than around rows."""
_COUNT_FACTORS = (3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0)
_REACH_STEPS = 160


@dataclass(frozen=True, slots=True)
class Ranks:
    """Of queries and their k nearest rows, nearest first: how they are to be found.

    `reach` (q, k) float32 of the rows' cells; `codes` (some q, k) int64, the rows' ranks by codes, from 1: one beyond
    what was looked at is a number greater than all counts. `all_reach` (q, c) is the reach of all cells.
    """

    reach: np.ndarray
    codes: np.ndarray
    all_reach: np.ndarray

    def first(self, k: int) -> Ranks:
        """Return the ranks of the `k` nearest alone."""
        return Ranks(self.reach[:, :k], self.codes[:, :k], self.all_reach)


@dataclass(frozen=True, slots=True)
class Setting:
    """How far to look: cells up to `reach`, `count` rows scored exactly; `recall` is what that is known to find.

    `probes` cells are within the reach of a query on average.
    """

    recall: float
    reach: float
    probes: int
    count: int

    def promising(self, recall: float) -> Setting:
        """Return the same setting, known to reach `recall`."""
        return Setting(recall, self.reach, self.probes, self.count)

    @classmethod
    def of(cls, item: Sequence[float]) -> Setting:
        """Read it off a list of JSON."""
        return cls(float(item[0]), float(item[1]), int(item[2]), int(item[3]))

    def to_list(self) -> list[Any]:
        """Return it as a list of JSON."""
        return [round(self.recall, 5), round(self.reach, 5), self.probes, self.count]


@dataclass(frozen=True, slots=True)
class Costs:
    """What a search does costs, in nanoseconds: a cell looked at, a row scored exactly."""

    probe_ns: float
    count_ns: float


def settings(samples: Sequence[Ranks], *, k: int, limit: int, levels: Sequence[float], costs: Costs) -> list[Setting]:
    """Return the cheapest setting for each level that any reaches, from the lowest level up.

    Every sample has to reach a level by itself. `limit` is the greatest count.
    """
    samples = [sample.first(k) for sample in samples]
    reach = _steps(np.concatenate([sample.reach.reshape(-1) for sample in samples]))
    counts = np.unique(np.clip([round(k * factor) for factor in _COUNT_FACTORS], min(_FEWEST_COUNT, limit), limit))
    recall = np.min([_recalls(sample, reach, counts) for sample in samples], axis=0)
    probes = np.mean([_probes(sample, reach) for sample in samples], axis=0)
    cost = probes[:, None] * costs.probe_ns + counts[None, :] * costs.count_ns
    found: list[Setting] = []
    for level in sorted(set(levels)):
        enough = recall >= level
        if not enough.any():
            break
        place = np.unravel_index(np.argmin(np.where(enough, cost, np.inf)), cost.shape)
        found.append(
            Setting(level, float(reach[place[0]]), int(np.ceil(probes[place[0]])), int(counts[place[1]])),
        )
    return found


def _steps(reach: np.ndarray) -> np.ndarray:
    """Return those of the neighbours' reaches to choose from, closer together the fewer are beyond: ascending."""
    ordered = np.sort(reach)
    beyond = np.geomspace(1, len(ordered), _REACH_STEPS).round().astype(np.int64)
    return np.unique(ordered[len(ordered) - beyond])


def _recalls(ranks: Ranks, reach: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the recall of each setting: (reaches, counts) float64."""
    reached = np.searchsorted(np.sort(ranks.reach, axis=None), reach, side="right") / ranks.reach.size
    scored = np.searchsorted(np.sort(ranks.codes, axis=None), counts, side="right") / ranks.codes.size
    return np.outer(reached, scored)


def _probes(ranks: Ranks, reach: np.ndarray) -> np.ndarray:
    """Return how many cells a query looks at on average within each reach: (reaches,) float64."""
    ordered = np.sort(ranks.all_reach, axis=None)
    return np.searchsorted(ordered, reach, side="right") / len(ranks.all_reach)
