"""The parsed form of a filter: an immutable tree that can be a key of a cache.

Values stand in one tuple per type (`numbers`, `strings`, `booleans`), because Python holds `1 == True` and a filter
does not: two filters are equal exactly when they select the same rows by the same conditions in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vectors.engine.ids import id_of

ID = "id"
"""The path that means the id of a row instead of a key of its metadata."""

ORDER_LOOKUPS = frozenset({"lt", "lte", "gt", "gte"})
TEXT_LOOKUPS = frozenset({"contains", "startswith", "endswith", "icontains"})
LOOKUPS = frozenset({"exact", "ne", "in", "range", "isnull"}) | ORDER_LOOKUPS | TEXT_LOOKUPS
_LIST_LOOKUPS = frozenset({"in", "range"})


@dataclass(frozen=True, slots=True)
class Condition:
    """One lookup on a metadata path.

    `in` has any number of values, `range` two of one type, `isnull` one boolean, every other lookup one value. A string
    of `icontains` is casefolded. `exact` and `ne` with null have become `isnull`.
    """

    path: str
    lookup: str
    numbers: tuple[int | float, ...] = ()
    strings: tuple[str, ...] = ()
    booleans: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class IdCondition:
    """One lookup on the id: `keys` for comparisons, `text` for lookups on text, `null` for `isnull`."""

    lookup: str
    keys: tuple[bytes, ...] = ()
    text: str = ""
    null: bool = False


@dataclass(frozen=True, slots=True)
class Conjunction:
    """All parts hold; without parts, every row matches."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Disjunction:
    """At least one part holds."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Negation:
    """The part does not hold; rows without the key it names are among these."""

    part: Node


Node = Condition | IdCondition | Conjunction | Disjunction | Negation


@dataclass(frozen=True, eq=False)
class Filter:
    """A parsed filter. Its hash is computed once, so that a cached mask is found in microseconds."""

    root: Node

    @cached_property
    def _hash(self) -> int:
        return hash(self.root)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Filter):
            return NotImplemented
        return self._hash == other._hash and self.root == other.root

    @property
    def matches_all(self) -> bool:
        """Whether it is the empty filter, which every row matches."""
        return self.root == Conjunction(())

    @property
    def document(self) -> dict[str, Any]:
        """The filter as a JSON object of the grammar: parsing it gives an equal filter.

        Each lookup is written out, and what must hold together stands in an AND. So it may be deeper, and have more
        members, than what was parsed: the limits of the grammar are for clients.
        """
        return _document(self.root)

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """The metadata paths it looks at, each once."""
        return tuple(dict.fromkeys(leaf.path for leaf in _leaves(self.root) if isinstance(leaf, Condition)))

    @cached_property
    def uses_id(self) -> bool:
        """Whether it looks at the id."""
        return any(isinstance(leaf, IdCondition) for leaf in _leaves(self.root))

    @cached_property
    def size_bytes(self) -> int:
        """An estimate of its own memory, counted when it keys a cached mask."""
        size = 400
        for leaf in _leaves(self.root):
            if isinstance(leaf, Condition):
                size += 300 + 32 * len(leaf.numbers) + sum(80 + len(text) for text in leaf.strings)
            else:
                size += 300 + sum(60 + len(key) for key in leaf.keys)
        return size


def _document(node: Node) -> dict[str, Any]:
    match node:
        case Conjunction(()):
            return {}
        case Conjunction(parts):
            return {"AND": [_document(part) for part in parts]}
        case Disjunction(parts):
            return {"OR": [_document(part) for part in parts]}
        case Negation(part):
            return {"NOT": _document(part)}
        case Condition():
            values: list[Any] = [*node.numbers, *node.strings, *node.booleans]
            return {f"{node.path}__{node.lookup}": values if node.lookup in _LIST_LOOKUPS else values[0]}
        case IdCondition():
            return {f"{ID}__{node.lookup}": _id_value(node)}


def _id_value(node: IdCondition) -> Any:
    if node.lookup == "isnull":
        return node.null
    if node.lookup in TEXT_LOOKUPS:
        return node.text
    ids = [id_of(key) for key in node.keys]
    return ids if node.lookup in _LIST_LOOKUPS else ids[0]


def _leaves(node: Node) -> Iterator[Condition | IdCondition]:
    if isinstance(node, Conjunction | Disjunction):
        for part in node.parts:
            yield from _leaves(part)
    elif isinstance(node, Negation):
        yield from _leaves(node.part)
    else:
        yield node
