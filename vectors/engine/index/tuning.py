"""How far a search must look for the recall that is asked for.

A true neighbour is found if its cell is among the cells probed and if it is among the rows that codes put first. For
queries whose neighbours are known, both ranks of each neighbour say at once what every setting would have found: the
share of neighbours with a cell rank of at most `probes` and a code rank of at most `count`. Nothing is tried out; the
cheapest setting is read off. The ranks among all codes are taken for those among the codes probed, of which there are
fewer: so a setting finds rather more than is said here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVELS = (0.8, 0.9, 0.95, 0.97, 0.98, 0.985, 0.99, 0.993, 0.995, 0.997, 0.998, 0.999)
"""Recalls for which settings are kept, besides the target of the namespace."""

_FEWEST_COUNT = 100
_COUNT_FACTORS = (3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0)
_PROBE_STEPS = 80


@dataclass(frozen=True, slots=True)
class Ranks:
    """Of queries and their k nearest rows, nearest first: the ranks of the rows' cells and codes, from 1, (q, k) int64.

    A rank beyond what was looked at is a number greater than all counts.
    """

    cells: np.ndarray
    codes: np.ndarray

    def first(self, k: int) -> Ranks:
        """Return the ranks of the `k` nearest alone."""
        return Ranks(self.cells[:, :k], self.codes[:, :k])


@dataclass(frozen=True, slots=True)
class Setting:
    """How far to look: `probes` cells, `count` rows scored exactly; `recall` is what that is known to find."""

    recall: float
    probes: int
    count: int

    def promising(self, recall: float) -> Setting:
        """Return the same setting, known to reach `recall`."""
        return Setting(recall, self.probes, self.count)

    @classmethod
    def of(cls, item: Sequence[float]) -> Setting:
        """Read it off a list of JSON."""
        return cls(float(item[0]), int(item[1]), int(item[2]))

    def to_list(self) -> list[Any]:
        """Return it as a list of JSON."""
        return [round(self.recall, 5), self.probes, self.count]


@dataclass(frozen=True, slots=True)
class Costs:
    """What a search does costs, in nanoseconds: each of `cells` looked at, a probe, a row scored exactly."""

    probe_ns: float
    count_ns: float


def settings(
    samples: Sequence[Ranks], *, k: int, cells: int, limit: int, levels: Sequence[float], costs: Costs
) -> list[Setting]:
    """Return the cheapest setting for each level that any reaches, from the lowest level up.

    Every sample has to reach a level by itself. `limit` is the greatest count.
    """
    probes = np.unique(np.geomspace(1, cells, _PROBE_STEPS).round().astype(np.int64))
    counts = np.unique(np.clip([round(k * factor) for factor in _COUNT_FACTORS], min(_FEWEST_COUNT, limit), limit))
    recall = np.min([_recalls(sample.first(k), probes, counts) for sample in samples], axis=0)
    cost = probes[:, None] * costs.probe_ns + counts[None, :] * costs.count_ns
    found: list[Setting] = []
    for level in sorted(set(levels)):
        enough = recall >= level
        if not enough.any():
            break
        place = np.unravel_index(np.argmin(np.where(enough, cost, np.inf)), cost.shape)
        found.append(Setting(level, int(probes[place[0]]), int(counts[place[1]])))
    return found


def _recalls(ranks: Ranks, probes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the recall of each setting: (probes, counts) float64."""
    recalls = np.empty((len(probes), len(counts)))
    for number, count in enumerate(counts):
        needed = np.where(ranks.codes <= count, ranks.cells, np.iinfo(np.int64).max)
        recalls[:, number] = np.searchsorted(np.sort(needed, axis=None), probes, side="right") / needed.size
    return recalls
