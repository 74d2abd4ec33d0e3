"""From a filter to a boolean mask over rows."""

from __future__ import annotations

import numpy as np

from vectors.engine.filters.blocks import Block
from vectors.engine.filters.columns import Columns, IdColumn, PathColumn, Prepared
from vectors.engine.filters.sorted_ids import SortedIds
from vectors.engine.filters.stored import StoredPathColumn
from vectors.engine.filters.texts import text_hits
from vectors.engine.filters.tree import (
    TEXT_LOOKUPS,
    Condition,
    Conjunction,
    Disjunction,
    Filter,
    IdCondition,
    Negation,
    Node,
)
from vectors.engine.ids import INTEGER_TAG, STRING_TAG, UUID_TAG, id_of


def mask(filter: Filter, columns: Columns, n: int) -> np.ndarray:
    """Return which of the first `n` rows match: (n,) bool, read-only.

    Rows never change, so the longest mask computed for a filter serves every shorter n, and a longer one needs only
    the rows after it.
    """
    known = columns.known_mask(filter)
    if known is not None and len(known) >= n:
        return known if len(known) == n else known[:n]
    start = 0 if known is None else len(known)
    result = _evaluate(filter.root, columns.prepare(filter, stop=n), start, n)
    if known is not None:
        result = np.concatenate((known, result))
    result.flags.writeable = False
    columns.keep_mask(filter, result)
    return result


def _evaluate(node: Node, prepared: Prepared, start: int, stop: int) -> np.ndarray:
    """Return which of the rows [start, stop) match: (stop - start,) bool, the caller's own."""
    if isinstance(node, Condition):
        return _condition(node, prepared.paths[node.path], start, stop)
    if isinstance(node, Conjunction):
        result = np.ones(stop - start, dtype=bool)
        for part in node.parts:
            result &= _evaluate(part, prepared, start, stop)
        return result
    if isinstance(node, Disjunction):
        result = np.zeros(stop - start, dtype=bool)
        for part in node.parts:
            result |= _evaluate(part, prepared, start, stop)
        return result
    if isinstance(node, Negation):
        return ~_evaluate(node.part, prepared, start, stop)
    assert prepared.ids is not None, "a filter with an id condition prepares the id column"
    if isinstance(prepared.ids, SortedIds):
        return prepared.ids.mask(node, start, stop)
    return _id_condition(node, prepared.ids, start, stop)


def _condition(condition: Condition, column: PathColumn | StoredPathColumn, start: int, stop: int) -> np.ndarray:
    lookup = condition.lookup
    if lookup == "isnull":
        here = column.here(start, stop)
        return ~here if condition.booleans[0] else here.copy()
    masks = []
    if condition.strings:
        span = column.texts.span(start, stop)
        masks.append(column.texts.spread(column.texts.compare(lookup, condition.strings, span), span, start, stop))
    if condition.numbers:
        for block in column.numbers:
            span = block.span(start, stop)
            if span.stop > span.start:
                hits = block.compare("exact" if lookup == "contains" else lookup, condition.numbers, span)
                masks.append(_spread_elements(block, lookup, hits, span, start, stop))
    if condition.booleans:
        span = column.booleans.span(start, stop)
        hits = column.booleans.compare("exact" if lookup == "contains" else lookup, condition.booleans, span)
        masks.append(_spread_elements(column.booleans, lookup, hits, span, start, stop))
    return _any(masks, stop - start)


def _spread_elements(block: Block, lookup: str, hits: np.ndarray, span: slice, start: int, stop: int) -> np.ndarray:
    """Spread hits on numbers or booleans; `contains` means these only as elements of an array."""
    if lookup == "contains":
        hits = hits & block.elements.view[span]
    return block.spread(hits, span, start, stop)


def _id_condition(condition: IdCondition, column: IdColumn, start: int, stop: int) -> np.ndarray:
    lookup = condition.lookup
    if lookup == "isnull":
        return np.full(stop - start, not condition.null)
    if lookup == "ne":
        return ~_id_condition(IdCondition("exact", condition.keys), column, start, stop)
    masks = []
    text_span = column.texts.span(start, stop)
    uuid_span = column.uuids.high.span(start, stop)
    if lookup in TEXT_LOOKUPS:
        if text_span.stop > text_span.start:
            hits = column.texts.compare(lookup, (condition.text,), text_span)
            masks.append(column.texts.spread(hits, text_span, start, stop))
        if uuid_span.stop > uuid_span.start:
            uuid_texts = column.uuids.texts(uuid_span)
            hits = text_hits(lookup, (condition.text,), uuid_texts, count=len(uuid_texts))
            masks.append(column.uuids.high.spread(hits, uuid_span, start, stop))
        return _any(masks, stop - start)
    integers = [int(id_of(key)) for key in condition.keys if key[:1] == INTEGER_TAG]
    uuids = [key[1:] for key in condition.keys if key[:1] == UUID_TAG]
    texts = [key[1:].decode() for key in condition.keys if key[:1] == STRING_TAG]
    if integers:
        span = column.integers.span(start, stop)
        hits = column.integers.compare(lookup, integers, span)
        masks.append(column.integers.spread(hits, span, start, stop))
    if uuids:
        hits = column.uuids.compare(lookup, uuids, uuid_span)
        masks.append(column.uuids.high.spread(hits, uuid_span, start, stop))
    if texts:
        hits = column.texts.compare(lookup, texts, text_span)
        masks.append(column.texts.spread(hits, text_span, start, stop))
    return _any(masks, stop - start)


def _any(masks: list[np.ndarray], length: int) -> np.ndarray:
    """Return where any mask holds; the first may be overwritten."""
    if not masks:
        return np.zeros(length, dtype=bool)
    result = masks[0]
    for other in masks[1:]:
        result |= other
    return result
