"""One shard copy of this node, opened and caught up for a request: what reads and writes have in common."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from django.conf import settings

from vectors import services
from vectors.errors import NotReady, ShardDamaged
from vectors.query_processor.port import RequestOptions, ShardAccount
from vectors.query_processor.translation import check_tokens, lost_entries
from vectors.runtime import Runtime, ShardRuntime, runtime
from vectors.store import log
from vectors.store.recovery import OpenShard


class OpenCopy:
    """One shard copy of this node; the first one unless `shard_id` says which. Thread-safe.

    `request_checkpoint` is called with the shard's uid when its tail has reached the soft limit, at most once a second.
    `on_knock` is called with it after a write that is the first since the senders looked (see `log.knock_clear`),
    outside of every lock; it must not block, and what it raises is logged: the write is committed.
    """

    def __init__(
        self,
        shard_id: int | None = None,
        *,
        request_checkpoint: Callable[[str], object] = services.checkpoint_request,
        on_knock: Callable[[str], object] | None = None,
    ) -> None:
        self.on_knock = on_knock
        self._given = shard_id
        self._request_checkpoint = request_checkpoint
        self._found: tuple[Runtime, int] | None = None
        self._asked_at = 0.0
        self._asking = threading.Event()

    def head(self) -> log.Head:
        """Return the head of its log as committed now. Raise NotReady when the copy has left this node."""
        head = log.read_head(self._shard().shard_id)
        if head is None:
            raise NotReady("the shard copy has left this node", retry_after_s=1)
        return head

    def _shard(self) -> ShardRuntime:
        engines = runtime()
        if self._given is not None:
            return self._of_this(engines.shard(self._given))
        found = self._found
        if found is None or found[0] is not engines:
            found = self._found = (engines, services.ensure_local_shard().pk)
        return self._of_this(engines.shard(found[1]))

    def _of_this(self, shard: ShardRuntime) -> ShardRuntime:
        if self._request_checkpoint is not services.checkpoint_request:
            # Who runs checkpoints itself is asked for those of a tail at rest as well.
            shard.on_rest = self._on_rest
        return shard

    def _on_rest(self, shard_uid: str, seq: int) -> None:
        self._request_checkpoint(shard_uid)

    def _open(self, shard: ShardRuntime, options: RequestOptions, *, write: bool = False) -> OpenShard:
        timeout_s = options.timeout_s or (settings.MLVDB_WRITE_TIMEOUT_S if write else settings.MLVDB_READ_TIMEOUT_S)
        try:
            return shard.fresh(timeout_s=timeout_s)
        except NotReady:
            # A node that becomes a replica drops its own empty copy; the next request looks which one it has now.
            if self._given is None and log.read_head(shard.shard_id) is None:
                self._found = None
            raise

    def _open_for_read(self, options: RequestOptions, *, partial: bool) -> tuple[OpenShard, ShardAccount]:
        opened = self._open(self._shard(), options)
        check_tokens(opened, options)
        label = opened.head.label
        account = ShardAccount(label, "primary", term=opened.engine.term, seq=opened.engine.seq)
        if not opened.damage:
            return opened, account
        if not (partial if options.partial is None else options.partial):
            raise ShardDamaged(
                f"shard {label} has lost data; partial=true answers from what is left",
                detail={"shard": label, "damage": opened.damage},
            )
        return opened, replace(account, lag=lost_entries(opened), error="shard_damaged")
