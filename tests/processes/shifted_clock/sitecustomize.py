"""Loaded by every Python process of a node that a test gives this directory as PYTHONPATH: a wall clock that jumps.

The file named by SHIFTED_CLOCK_FILE holds the seconds by which the wall clock is off; it may change at any time. The
monotonic clocks are left alone, as they are when a real clock is set.
"""

from __future__ import annotations

import datetime
import os
import sqlite3
import time
from collections.abc import Callable

_path = os.environ["SHIFTED_CLOCK_FILE"]
_time, _time_ns, _monotonic = time.time, time.time_ns, time.monotonic
_real = datetime.datetime
_read_at = float("-inf")
_offset_s = 0.0


def _offset() -> float:
    global _read_at, _offset_s
    now = _monotonic()
    if now - _read_at > 0.1:
        _read_at = now
        try:
            with open(_path) as file:
                _offset_s = float(file.read() or 0)
        except OSError:
            _offset_s = 0.0
    return _offset_s


class _LikeReal(type):
    """Values are plain datetimes, and plain datetimes count as instances: C code knows only that type."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _real)

    def __subclasscheck__(cls, kind: type) -> bool:
        return issubclass(kind, _real)


class _Shifted(_real, metaclass=_LikeReal):
    def __new__(cls, *arguments: object, **named: object) -> datetime.datetime:
        return _real(*arguments, **named)

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return _real.fromtimestamp(_time() + _offset(), tz)

    @classmethod
    def utcnow(cls) -> datetime.datetime:
        return _real.fromtimestamp(_time() + _offset(), datetime.UTC).replace(tzinfo=None)


def _register_adapter(kind: type, adapter: Callable[[object], object]) -> None:
    # Adapters are looked up by exact type, and values are of the real one.
    _adapter(_real if kind is _Shifted else kind, adapter)


_adapter = sqlite3.register_adapter
sqlite3.register_adapter = sqlite3.dbapi2.register_adapter = _register_adapter
time.time = lambda: _time() + _offset()
time.time_ns = lambda: _time_ns() + int(_offset() * 1e9)
datetime.datetime = _Shifted
