"""The handwritten digits of the UCI machine learning repository: 1,797 pictures of 8 × 8 points.

Source and licence are in this directory's README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

_FILE = Path(__file__).with_name("digits.npz")
_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_LOOPS = (0, 6, 8, 9)
_BLACK = 16


class Digits:
    """The pictures and what they show.

    `values` is (1797, 64) float32, C-contiguous: the grey levels 0 (white) to 16 (black) of each picture, row by row
    from the top. `labels` is (1797,) uint8: the digit that was written.
    """

    namespace = "digits"
    dimension = 64
    picture = "8x8"

    def __init__(self, values: np.ndarray, labels: np.ndarray) -> None:
        self.values = values
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def ids(self) -> Sequence[str]:
        """`digit-0001` to `digit-1797`, in the order of the source."""
        return [f"digit-{number:04d}" for number in range(1, len(self) + 1)]

    @cached_property
    def metadata(self) -> Sequence[dict[str, Any]]:
        """One object a picture: the digit, its name, its parity, `ink` (mean blackness, 0 to 1), and tags."""
        ink = (self.values.mean(axis=1, dtype=np.float64) / _BLACK).round(3).tolist()
        return [
            {
                "digit": digit,
                "name": _NAMES[digit],
                "parity": "odd" if digit % 2 else "even",
                "ink": ink[row],
                "tags": ["loop"] if digit in _LOOPS else [],
            }
            for row, digit in enumerate(self.labels.tolist())
        ]


def load_digits() -> Digits:
    """Return the data set."""
    with np.load(_FILE, allow_pickle=False) as arrays:
        return Digits(np.ascontiguousarray(arrays["values"], dtype=np.float32), arrays["labels"])
