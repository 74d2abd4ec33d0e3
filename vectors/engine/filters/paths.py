"""Where a dotted path leads in a metadata object."""

from __future__ import annotations

from typing import Any, NamedTuple


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
