"""The index of one segment at work: which rows to score exactly for a query, a recall and a selection of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vectors.engine.distances import Query
from vectors.engine.index import layout, reach
from vectors.engine.index.scanner import Codebook, Scanner, available
from vectors.engine.index.tuning import Setting
from vectors.engine.selection import CODED_BYTES, Selection

# What searching costs, measured on one core with 384 dimensions: a byte of codes, a float of a row fetched from
# anywhere, of one scanned in order, of one at hand side by side; a cell that is looked at; every use of the index.
CODE_NS = 0.06
FETCHED_NS = 0.4
SCANNED_NS = 0.27
GATHERED_NS = 0.12
CELL_NS = 150.0
INDEX_NS = 40_000.0

_NEARLY_ALL = 0.9
_SETTINGS_KEPT = 64
_LARGEST_SHARE = 0.3
"""Of the rows: a search that would score more of them exactly scores all."""


class Tuning:
    """The settings for one number of neighbours and one share of the rows selected, by recall."""

    def __init__(self, *, k: int, share: float, settings: Sequence[Setting]) -> None:
        self.k, self.share, self.settings = k, share, settings

    def setting(self, recall: float) -> Setting | None:
        """Return the cheapest known to reach a recall, None where none does."""
        return next((setting for setting in self.settings if setting.recall >= recall), None)

    def to_document(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {"k": self.k, "share": self.share, "settings": [setting.to_list() for setting in self.settings]}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Tuning:
        """Read `to_document`'s result."""
        settings = [Setting.of(item) for item in document["settings"]]
        return cls(k=int(document["k"]), share=float(document["share"]), settings=settings)


class _Where(NamedTuple):
    """Where selected rows lie: how many in each cell (c,), the cells (n,) int64 that have any, their share of those."""

    matches: np.ndarray
    cells: np.ndarray
    share: float


class SegmentIndex:
    """Codes of a segment's rows with what is known of how far to look. Thread-safe."""

    def __init__(
        self,
        scanner: Scanner,
        *,
        metric: str,
        dimension: int,
        cells_of_rows: np.ndarray,
        tunings: Sequence[Tuning],
        spread: float,
        summary: Mapping[str, Any],
        nbytes: int = 0,
    ) -> None:
        self.metric = metric
        self.dimension = dimension
        self.summary = summary
        self.nbytes = nbytes
        self._scanner = scanner
        self._spread = spread
        self._cells_of_rows = cells_of_rows
        self._cells = len(scanner.codebook.cells)
        self._row_bytes = scanner.codebook.code_bytes
        self._list_rows = np.bincount(cells_of_rows, minlength=self._cells)
        self._of_all: dict[tuple[int, float], tuple[Setting | None]] = {}
        self._by_k: dict[int, list[Tuning]] = {}
        for tuning in sorted(tunings, key=lambda item: -item.share):
            self._by_k.setdefault(tuning.k, []).append(tuning)

    @property
    def rows(self) -> int:
        """Rows it has."""
        return self._scanner.rows

    def propose(self, query: Query, *, k: int, recall: float, selection: Selection) -> np.ndarray | None:
        """Return the selected rows to score, (n,) int64, to find `k` with the recall asked for; None: score them all.

        That is when nothing is known to reach the recall, when it would cost more, and when fewer than `k` are found.
        """
        if recall >= 1.0 or not selection.count:
            return None
        if selection.count >= _NEARLY_ALL * selection.total:
            return self._from_nearest([query], k=k, recall=recall, selection=selection)[0]
        return self._from_selected(query, k=k, recall=recall, selection=selection)

    def propose_many(
        self, queries: Sequence[Query], *, k: int, recall: float, selection: Selection
    ) -> Sequence[np.ndarray | None]:
        """Return for each query what `propose` does; those of all rows by one scan."""
        if recall < 1.0 and selection.count and selection.count >= _NEARLY_ALL * selection.total:
            return self._from_nearest(queries, k=k, recall=recall, selection=selection)
        return [self.propose(query, k=k, recall=recall, selection=selection) for query in queries]

    def _from_nearest(
        self, queries: Sequence[Query], *, k: int, recall: float, selection: Selection
    ) -> Sequence[np.ndarray | None]:
        known = self._of_all.get((k, recall))
        if known is None:
            # Two numbers that clients choose: of those that come again and again.
            if len(self._of_all) >= _SETTINGS_KEPT:
                self._of_all.clear()
            known = self._of_all[k, recall] = (self._setting(k, recall, 1.0),)
        [setting] = known
        if setting is None or self._is_dearer(setting, selection):
            return [None] * len(queries)
        padded = self._padded(queries)
        cells = reach.nearest(self._scanner.distances(padded), self._spread, setting.reach)
        found = self._scanner.scan(padded, cells, count=setting.count, selected=selection.bits)
        return [_enough(rows, k, selection) for rows in found]

    def _from_selected(self, query: Query, *, k: int, recall: float, selection: Selection) -> np.ndarray | None:
        lie = selection.remembered(self._cells_of_rows, lambda: self._where(selection))
        setting = self._setting(k, recall, lie.share)
        if setting is None or self._is_dearer(setting, selection):
            return None
        padded = self._padded([query])
        if selection.count * self._row_bytes <= CODED_BYTES:
            coded = selection.coded(self._cells_of_rows, lambda rows: self._scanner.gathered(rows, self._cells_of_rows))
            if coded is not None:
                # In order, and those that are none come first.
                places = coded.nearest(padded, min(setting.count, coded.rows))
                places.sort()
                return _enough(selection.rows[places[int(places.searchsorted(0)) :]], k, selection)
        nearest, probes = reach.nearest_of_one(
            self._scanner.distances(padded)[0, lie.cells], self._spread, setting.reach
        )
        order = lie.cells[nearest]
        # As many selected rows as the same number of cells has on average: near cells may have few of them.
        wanted = probes * selection.count / len(lie.cells)
        reached = int(np.searchsorted(np.cumsum(lie.matches[order]), wanted)) + 1
        cells = order[np.newaxis, : max(probes, reached)]
        [rows] = self._scanner.scan(padded, cells, count=setting.count, selected=selection.bits)
        return _enough(rows, k, selection)

    def _where(self, selection: Selection) -> _Where:
        mine = self._cells_of_rows if selection.mask is None else self._cells_of_rows[selection.mask]
        matches = np.bincount(mine, minlength=self._cells)
        cells = np.flatnonzero(matches)
        # Rows selected may lie close together: what counts is how many there are where there are any.
        return _Where(matches, cells, selection.count / max(1, int(self._list_rows[cells].sum())))

    def _is_dearer(self, setting: Setting, selection: Selection) -> bool:
        """Whether scoring all selected rows costs less than asking the index."""
        if setting.count > _LARGEST_SHARE * selection.count:
            return True
        probed = setting.probes * self.rows / self._cells
        with_index = (
            INDEX_NS
            + setting.probes * CELL_NS
            + probed * self._row_bytes * CODE_NS
            + setting.count * self.dimension * FETCHED_NS
        )
        if selection.mask is None:
            all_of_them = selection.count * SCANNED_NS
        elif selection.is_gathered:
            all_of_them = selection.count * GATHERED_NS
        else:
            all_of_them = min(selection.count * FETCHED_NS, selection.total * SCANNED_NS)
        return all_of_them * self.dimension <= with_index

    def _setting(self, k: int, recall: float, share: float) -> Setting | None:
        """Return the setting for `k` neighbours among a share of the rows, between those that were tuned."""
        lower = max((known for known in self._by_k if known <= k), default=min(self._by_k))
        upper = min((known for known in self._by_k if known >= k), default=max(self._by_k))
        first, last = self._of_share(lower, recall, share), self._of_share(upper, recall, share)
        if first is None or last is None:
            return None
        if k <= lower:
            return first
        if k > upper:
            # Beyond what was tuned the rows lie in more cells, by experience with the root of their number.
            grown = k / upper
            farther = last.reach + 0.5 * float(np.log(grown))
            return self._bounded(recall, farther, last.probes * grown**0.5, last.count * grown)
        weight = np.log(k / lower) / np.log(upper / lower) if upper > lower else 0.0
        return self._between(recall, first, last, weight)

    def _of_share(self, k: int, recall: float, share: float) -> Setting | None:
        tunings = self._by_k[k]
        below = next((tuning for tuning in tunings if tuning.share <= share), None)
        if below is None:
            # Fewer than were ever tried: to score them costs little.
            return None
        above = next((tuning for tuning in reversed(tunings) if tuning.share > share), None)
        small = below.setting(recall)
        if above is None or small is None:
            return small
        large = above.setting(recall)
        if large is None:
            return None
        weight = np.log(above.share / share) / np.log(above.share / below.share)
        return self._between(recall, large, small, weight)

    def _between(self, recall: float, first: Setting, last: Setting, weight: float) -> Setting:
        return self._bounded(
            recall,
            first.reach * (1 - weight) + last.reach * weight,
            first.probes ** (1 - weight) * last.probes**weight,
            first.count ** (1 - weight) * last.count**weight,
        )

    def _bounded(self, recall: float, reach: float, probes: float, count: float) -> Setting:
        return Setting(recall, reach, min(self._cells, int(np.ceil(probes))), min(self.rows, int(np.ceil(count))))

    def _padded(self, queries: Sequence[Query]) -> np.ndarray:
        if len(queries) == 1 and self._scanner.codebook.padded == self.dimension:
            return queries[0].scan[np.newaxis]
        padded = np.zeros((len(queries), self._scanner.codebook.padded), dtype=np.float32)
        for row, query in zip(padded, queries, strict=True):
            row[: self.dimension] = query.scan
        return padded


def open_index(path: Path) -> SegmentIndex:
    """Map the index of a file. Raise ValueError for a file that is none of this format, or where faiss is missing."""
    if not available():
        raise ValueError("faiss is not installed")
    found = layout.read(path)
    document, arrays = found.document, found.arrays
    try:
        codebook = Codebook(arrays["cells"], arrays["codes"])
        cells_of_rows = arrays["cells_of_rows"]
        if len(cells_of_rows) != document["summary"]["rows"] or int(cells_of_rows.max()) >= len(codebook.cells):
            raise ValueError("rows lie in cells that are not there")
        scanner = Scanner.over_file(
            codebook,
            document["metric"],
            path=path,
            offset=found.lists_offset,
            size=found.size,
            list_rows=np.bincount(cells_of_rows, minlength=len(codebook.cells)),
        )
        return SegmentIndex(
            scanner,
            metric=document["metric"],
            dimension=int(document["summary"]["dimension"]),
            cells_of_rows=cells_of_rows,
            tunings=[Tuning.from_document(item) for item in document["tunings"]],
            spread=float(document["spread"]),
            summary=document["summary"],
            nbytes=found.size,
        )
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"this is no index: {error!r}") from error


def _enough(rows: np.ndarray, k: int, selection: Selection) -> np.ndarray | None:
    """Return the rows found, in order; None when there are more selected rows than found, and fewer than `k` found.

    None as well where the lists say rows that the segment has not: nobody looks again before they are fetched.
    """
    # In order they are fetched faster, and those that are none come first.
    rows.sort()
    if len(rows) and rows[0] < 0:
        rows = rows[int(rows.searchsorted(0)) :]
    if len(rows) < min(k, selection.count) or (len(rows) and rows[-1] >= selection.total):
        return None
    return rows
