"""Where a dotted path leads in a metadata object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple


class _Forked:
    """More than one thing, or perhaps."""


FORKED: Final = _Forked()


class Reached(NamedTuple):
    """What a path leads to: scalars, each with whether it is an element of an array, and whether anything is there."""

    scalars: list[tuple[Any, bool]]
    present: bool


class Path:
    """A path, prepared for many objects.

    `a.b` is the key `a.b` of an object as well as the key `b` of the object at `a`; both are taken where both exist.
    Arrays on the way and at the end stand for each of their elements. The walk keeps its own stack, because stored JSON
    may be nested deeper than Python calls.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.flat = "." not in text
        parts = text.split(".")
        self._end = len(parts)
        self._keys = [
            [(".".join(parts[start:stop]), stop) for stop in range(start + 1, len(parts) + 1)]
            for start in range(len(parts))
        ]
        self._steps = [(keys[0][0], [key for key, _ in keys[1:]]) for keys in self._keys]

    def straight(self, documents: Sequence[dict[str, Any]]) -> list[Any]:
        """Return what stands at the path in decoded objects that lead there by one way; None where nothing does.

        Where the way forks, or leads through an array, it is `FORKED`, and `reach` must be asked.
        """
        if self.flat:
            return [document.get(self.text) for document in documents]
        nodes: list[Any] = list(documents)
        for key, others in self._steps:
            for place, node in enumerate(nodes):
                if type(node) is dict:
                    forked = others and not node.keys().isdisjoint(others)
                    nodes[place] = FORKED if forked else node.get(key)
                elif node is not None and node is not FORKED:
                    nodes[place] = FORKED if type(node) is list else None
        return nodes

    def reach(self, document: dict[str, Any]) -> Reached:
        """Return what the path leads to in a decoded object."""
        scalars: list[tuple[Any, bool]] = []
        present = False
        pending: list[tuple[Any, int, bool]] = [(document, 0, False)]
        while pending:
            node, start, element = pending.pop()
            if type(node) is list:
                inside = start == self._end
                if inside and not node:
                    present = True
                pending += [(member, start, inside) for member in node]
            elif start == self._end:
                if node is not None:
                    present = True
                    if type(node) is not dict:
                        scalars.append((node, element))
            elif type(node) is dict:
                pending += [(node[key], stop, False) for key, stop in self._keys[start] if key in node]
        return Reached(scalars, present)
