"""Filters: columns grow with their rows, serve several threads, and stay inside a budget."""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence

import numpy as np
import orjson
import pytest

from vectors.engine.filters import ColumnBudget, Columns, mask, matches, parse_filter
from vectors.engine.filters.blocks import GrowingArray
from vectors.engine.ids import key_of

ROWS = 3000
METADATA = [
    orjson.dumps(
        {"n": row, "text": f"t{row % 7}", "unique": f"{row * 7919 % ROWS:05}", "tags": [row % 3, str(row % 5)]}
    )
    for row in range(ROWS)
]
KEYS = [key_of(row if row % 2 else f"row {row}") for row in range(ROWS)]
FILTERS = [
    parse_filter(obj)
    for obj in (
        {"n__lt": 1000},
        {"text": "t3", "NOT": {"n__range": [500, 2500]}},
        {"unique__lt": "01000"},
        {"unique__contains": "77"},
        {"tags__contains": 1, "tags": "4"},
        {"OR": [{"id__lt": 900}, {"id__startswith": "row 2"}]},
        {"missing__isnull": True},
    )
]


class Source:
    """Rows that count how often they are read."""

    def __init__(self) -> None:
        self.read = 0

    def metadata_of(self, start: int, stop: int) -> Sequence[bytes]:
        self.read += stop - start
        return METADATA[start:stop]

    def keys_of(self, start: int, stop: int) -> Sequence[bytes]:
        return KEYS[start:stop]

    def columns(self, budget: ColumnBudget | None = None) -> Columns:
        return Columns(self.metadata_of, self.keys_of, budget=budget)


@pytest.fixture(scope="module")
def expected() -> list[np.ndarray]:
    return [
        np.array([matches(parsed, *row) for row in zip(METADATA, KEYS, strict=True)], dtype=bool) for parsed in FILTERS
    ]


def test_columns_and_masks_are_extended_not_rebuilt(expected: list[np.ndarray]) -> None:
    source = Source()
    columns = source.columns()
    for n in (0, 1, 10, 999, 1000, 1001, 2500, 2501, ROWS, 1500):
        for parsed, whole in zip(FILTERS, expected, strict=True):
            assert np.array_equal(mask(parsed, columns, n), whole[:n])
    paths = {path for parsed in FILTERS for path in parsed.paths}
    assert source.read <= ROWS * len(paths)


def test_the_paths_of_one_filter_are_read_in_one_pass() -> None:
    source = Source()
    mask(parse_filter({"n__lt": 10, "text": "t1", "tags": 1}), source.columns(), ROWS)
    assert source.read == ROWS


def test_threads_with_different_lengths_agree_with_the_reference(expected: list[np.ndarray]) -> None:
    columns = Source().columns(ColumnBudget(200_000))  # small enough to evict while others read
    wrong: list[tuple[int, int]] = []
    barrier = threading.Barrier(4)

    def read(seed: int) -> None:
        random = np.random.default_rng(seed)
        barrier.wait()
        for n in np.sort(random.integers(0, ROWS + 1, size=40)).tolist():
            which = int(random.integers(len(FILTERS)))
            try:
                if not np.array_equal(mask(FILTERS[which], columns, n), expected[which][:n]):
                    wrong.append((which, n))
            except Exception:
                wrong.append((which, n))
                raise

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_mask_is_kept_and_read_only() -> None:
    columns = Source().columns()
    first = mask(FILTERS[0], columns, ROWS)
    assert mask(parse_filter({"n__lt": 1000}), columns, ROWS) is first
    for shared in (first, mask(FILTERS[0], columns, 10)):
        with pytest.raises(ValueError, match="read-only"):
            shared[0] = False


def test_a_budget_keeps_what_was_used_last_within_its_limit(expected: list[np.ndarray]) -> None:
    budget = ColumnBudget(150_000)
    parts = [Source().columns(budget) for _ in range(3)]
    for columns in parts:
        for parsed, whole in zip(FILTERS, expected, strict=True):
            assert np.array_equal(mask(parsed, columns, ROWS), whole)
            assert 0 < budget.nbytes <= 150_000
    assert sum(columns.nbytes for columns in parts) == budget.nbytes
    assert parts[-1].known_mask(FILTERS[-1]) is not None
    assert parts[0].nbytes == 0


def test_a_budget_of_nothing_keeps_nothing_and_still_answers(expected: list[np.ndarray]) -> None:
    budget = ColumnBudget(0)
    columns = Source().columns(budget)
    for parsed, whole in zip(FILTERS, expected, strict=True):
        assert np.array_equal(mask(parsed, columns, ROWS), whole)
    assert (budget.nbytes, columns.nbytes) == (0, 0)


def test_a_dropped_run_of_rows_gives_its_memory_back() -> None:
    budget = ColumnBudget(None)
    kept, dropped = Source().columns(budget), Source().columns(budget)
    for columns in (kept, dropped):
        mask(FILTERS[1], columns, ROWS)
    assert budget.nbytes == 2 * kept.nbytes
    del columns, dropped
    gc.collect()
    assert budget.nbytes == kept.nbytes > 0


def test_rows_that_could_not_be_read_are_read_when_they_can() -> None:
    failing = True

    def metadata_of(start: int, stop: int) -> Sequence[bytes]:
        if failing and start >= 2000:
            raise OSError("unreadable")
        return METADATA[start:stop]

    columns = Columns(metadata_of, lambda start, stop: KEYS[start:stop])
    assert mask(FILTERS[0], columns, 1500).sum() == 1000
    with pytest.raises(OSError, match="unreadable"):
        mask(FILTERS[0], columns, ROWS)
    failing = False
    assert mask(FILTERS[0], columns, ROWS).sum() == 1000
    assert mask(parse_filter({"n__gte": 1000}), columns, ROWS).sum() == 2000


def test_memory_that_ran_out_halfway_leaves_no_half_column_behind(
    monkeypatch: pytest.MonkeyPatch, expected: list[np.ndarray]
) -> None:
    columns = Source().columns()
    mask(FILTERS[1], columns, 1000)
    extend = GrowingArray.extend

    def extend_until_full(array: GrowingArray, values: Sequence[object] | np.ndarray) -> None:
        if len(array) >= 1000 and array.view.dtype == np.bool_:
            raise MemoryError
        extend(array, values)

    with monkeypatch.context() as patch:
        patch.setattr(GrowingArray, "extend", extend_until_full)
        with pytest.raises(MemoryError):
            mask(FILTERS[1], columns, 2000)
    assert np.array_equal(mask(FILTERS[1], columns, ROWS), expected[1])
    for n in range(1000, 1500, 10):
        anew = parse_filter({"text": "t3", "NOT": {"OR": [{"n__range": [500, 2500]}, {"n": -n}]}})
        assert np.array_equal(mask(anew, columns, n), expected[1][:n])
