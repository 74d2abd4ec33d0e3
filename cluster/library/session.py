"""The port of `vectors.query_processor` as programs ask it: with one session's consistency, and of one engine alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vectors.query_processor import QueryProcessor, RequestOptions
    from vectors.store.log import Position


class Session:
    """The methods of a port, each called with the same consistency options and with the tokens of earlier writes.

    So a read sees what was written through this object, whichever copy answers. `check` is called before each of them.
    Thread-safe.
    """

    def __init__(
        self,
        port: QueryProcessor,
        *,
        check: Callable[[], object],
        consistency: str = "one",
        read_preference: str | None = None,
        timeout_s: float | None = None,
    ) -> None:
        from vectors.query_processor import RequestOptions

        self._port = port
        self._check = check
        self._given = RequestOptions(consistency=consistency, read_preference=read_preference, timeout_s=timeout_s)
        self._lock = threading.Lock()
        self._tokens: dict[str, str] = {}
        self._written: dict[str, tuple[str, Position]] = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return a method of the port with the options filled in."""
        return partial(self._call, getattr(self._port, name))

    def written(self, shard_uid: str) -> Position | None:
        """Return where the newest write through this object is in a shard's log; None when there was none."""
        with self._lock:
            return max((at for uid, at in self._written.values() if uid == shard_uid), default=None)

    def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        from vectors.query_processor import WriteResult

        self._check()
        result = method(*args, **kwargs, options=self._options())
        if isinstance(result, WriteResult):
            self._remember(result)
        return result

    def _options(self) -> RequestOptions:
        with self._lock:
            return replace(self._given, min_seq=dict(self._tokens))

    def _remember(self, result: Any) -> None:
        from vectors.store.log import Position

        with self._lock:
            for label, (uid, term, seq) in result.positions.items():
                position = Position(term, seq)
                known = self._written.get(label)
                if known is None or known[0] != uid or position > known[1]:
                    self._written[label] = (uid, position)
                    self._tokens[label] = result.seq[label]
