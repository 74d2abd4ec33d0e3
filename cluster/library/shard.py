"""A storage engine's shard over all of its copies, behind the port of `vectors.query_processor`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vectors.library import StorageEngineInMemory
    from vectors.query_processor import RequestOptions
    from vectors.store.log import Position


class ReplicatedShard:
    """The methods of the port, each called with the same consistency options and with the tokens of earlier writes.

    So a read sees what was written through this object, whichever copy answers. Thread-safe.
    """

    def __init__(
        self,
        storage: StorageEngineInMemory,
        *,
        consistency: str = "one",
        read_preference: str | None = None,
        timeout_s: float | None = None,
    ) -> None:
        from cluster.query_processor import ClusterQueryProcessor
        from cluster.replication.knocks import checkpoint_knock
        from vectors.query_processor import RequestOptions

        self._storage = storage
        self._given = RequestOptions(consistency=consistency, read_preference=read_preference, timeout_s=timeout_s)
        self._port = ClusterQueryProcessor(storage.shard_id, request_checkpoint=checkpoint_knock)
        self._lock = threading.Lock()
        self._tokens: dict[str, str] = {}
        self.written: Position | None = None
        """Where the newest write through this object is in the log."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return a method of the port with the options filled in."""
        return partial(self._call, getattr(self._port, name))

    def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        from vectors.query_processor import WriteResult

        # Raises what a closed engine raises.
        _ = self._storage.query_processor
        result = method(*args, **kwargs, options=self._options())
        if isinstance(result, WriteResult):
            self._remember(result)
        return result

    def _options(self) -> RequestOptions:
        with self._lock:
            return replace(self._given, min_seq=dict(self._tokens))

    def _remember(self, result: Any) -> None:
        from vectors.store.log import Position

        for _, term, seq in result.positions.values():
            with self._lock:
                position = Position(term, seq)
                if self.written is None or position > self.written:
                    self.written = position
                    self._tokens.update(result.seq)
