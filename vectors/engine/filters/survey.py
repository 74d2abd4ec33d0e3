"""Which paths occur in the metadata of some rows, and how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from vectors.engine.filters.grammar import MAX_PATH_CHARACTERS, MAX_PATH_PARTS
from vectors.engine.filters.tree import ID

_PATHS_COUNTED = 4096
_PATHS_LEFT = 1024
_NESTED = (dict, list)


class Survey:
    """Counts the rows of each path that a filter can name.

    Of a great many paths those that were seen seldom are forgotten; `complete` says that none was.
    """

    def __init__(self) -> None:
        self.complete = True
        self._rows: Counter[str] = Counter()

    def add(self, documents: Iterable[Mapping[str, Any]]) -> None:
        """Count the paths of some decoded objects."""
        for document in documents:
            flat = set(map(type, document.values())).isdisjoint(_NESTED)
            self._rows.update(document.keys() if flat else _paths_below(document))
            if len(self._rows) > _PATHS_COUNTED:
                self._rows = Counter(dict(self._rows.most_common(_PATHS_LEFT)))
                self.complete = False

    @property
    def paths(self) -> dict[str, int]:
        """The rows of each path, the most frequent first, equal ones by name."""
        askable = ((path, rows) for path, rows in self._rows.items() if _is_askable(path))
        return dict(sorted(askable, key=lambda item: (-item[1], item[0])))


def _paths_below(document: Mapping[str, Any]) -> set[str]:
    """Return the paths that lead somewhere in a document: every chain of keys, joined, arrays looked through."""
    paths = set(document)
    pending: list[tuple[str, Any]] = [(key, value) for key, value in document.items() if type(value) in _NESTED]
    while pending:
        path, value = pending.pop()
        if type(value) is list:
            pending += [(path, member) for member in value if type(member) in _NESTED]
        elif _is_short(path):
            for key, member in value.items():
                below = f"{path}.{key}"
                paths.add(below)
                if type(member) in _NESTED:
                    pending.append((below, member))
    return paths


def _is_askable(path: str) -> bool:
    return _is_short(path) and path not in ("", ID)


def _is_short(path: str) -> bool:
    return len(path) <= MAX_PATH_CHARACTERS and path.count(".") < MAX_PATH_PARTS
