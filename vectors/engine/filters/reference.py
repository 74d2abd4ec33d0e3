"""A filter on one row, in plain Python: for single rows, and as the reference that the masks are tested against."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import orjson

from vectors.engine.filters.tree import TEXT_LOOKUPS, Condition, Conjunction, Disjunction, Filter, IdCondition, Node
from vectors.engine.ids import INTEGER_TAG, id_of

_ORDER = {"lt": operator.lt, "lte": operator.le, "gt": operator.gt, "gte": operator.ge}


def matches(filter: Filter, metadata: bytes, key: bytes) -> bool:
    """Return whether a row with that metadata (a JSON object) and key matches."""
    return _holds(filter.root, orjson.loads(metadata), key)


def _holds(node: Node, document: dict[str, Any], key: bytes) -> bool:
    if isinstance(node, Conjunction):
        return all(_holds(part, document, key) for part in node.parts)
    if isinstance(node, Disjunction):
        return any(_holds(part, document, key) for part in node.parts)
    if isinstance(node, Condition):
        return _condition_holds(node, document)
    if isinstance(node, IdCondition):
        return _id_condition_holds(node, key)
    return not _holds(node.part, document, key)


def _condition_holds(condition: Condition, document: dict[str, Any]) -> bool:
    ends = list(_ends([document], condition.path))
    if condition.lookup == "isnull":
        there = any(_is_there(end) for end in ends)
        return there is not condition.booleans[0]
    if condition.lookup == "contains":
        texts = (leaf for end in ends for leaf in _leaves(end) if isinstance(leaf, str))
        if condition.strings:
            return any(condition.strings[0] in text for text in texts)
        wanted = [*condition.numbers, *condition.booleans]
        return any(_same(leaf, wanted[0]) for end in ends if isinstance(end, list) for leaf in _leaves(end))
    operands = [*condition.numbers, *condition.strings, *condition.booleans]
    return any(_compare(condition.lookup, leaf, operands) for end in ends for leaf in _leaves(end))


def _compare(lookup: str, value: Any, operands: list[Any]) -> bool:
    """Whether one stored scalar is hit; a value of another type than an operand is never compared with it."""
    comparable = [operand for operand in operands if _type_of(operand) == _type_of(value)]
    if not comparable:
        return False
    first = comparable[0]
    if lookup in ("exact", "in"):
        return any(_same(value, operand) for operand in comparable)
    if lookup == "ne":
        return bool(value != first)
    if lookup == "range":
        return bool(first <= value <= comparable[1])
    if lookup in _ORDER:
        return bool(_ORDER[lookup](value, first))
    return _text_holds(lookup, value, first)


def _text_holds(lookup: str, text: str, operand: str) -> bool:
    if lookup == "contains":
        return text.find(operand) >= 0
    if lookup == "startswith":
        return text[: len(operand)] == operand
    if lookup == "endswith":
        return operand == "" or text[-len(operand) :] == operand
    return text.casefold().find(operand) >= 0


def _id_condition_holds(condition: IdCondition, key: bytes) -> bool:
    lookup, keys = condition.lookup, condition.keys
    if lookup == "isnull":
        return not condition.null
    if lookup in TEXT_LOOKUPS:
        return key[:1] != INTEGER_TAG and _text_holds(lookup, str(id_of(key)), condition.text)
    if lookup in ("exact", "in"):
        return key in keys
    if lookup == "ne":
        return key != keys[0]
    if key[:1] != keys[0][:1]:
        return False
    if lookup == "range":
        return keys[0] <= key <= keys[1]
    return bool(_ORDER[lookup](key, keys[0]))


def _ends(nodes: list[Any], path: str) -> Iterator[Any]:
    """Yield what stands at the end of the path, from each node; arrays on the way stand for their elements."""
    for node in nodes:
        for document in _leaves(node):
            if not isinstance(document, dict):
                continue
            for key, value in document.items():
                if key == path:
                    yield value
                elif path.startswith(key + "."):
                    yield from _ends([value], path[len(key) + 1 :])


def _leaves(value: Any) -> Iterator[Any]:
    """Yield a value, or the elements of an array and of the arrays in it, in order."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, list):
            pending.extend(reversed(item))
        else:
            yield item


def _is_there(value: Any) -> bool:
    """Whether a value is something: not null, and not an array that ends in nothing but nulls."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, list) and item:
            pending.extend(item)
        elif item is not None:
            return True
    return False


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else type(value).__name__


def _same(left: Any, right: Any) -> bool:
    return _type_of(left) == _type_of(right) and bool(left == right)
