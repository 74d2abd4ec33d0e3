"""The engines of this process: opened lazily, caught up on every request, swapped when a new manifest appears.

A request asks for the head of the log (one short statement) and applies what its process lacks, so a read sees every
write answered before it began, in whichever worker it lands. A background thread catches up idle processes and maps
new segments, so that no request waits for that.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.db import connection

from vectors.engine.filters import ColumnBudget
from vectors.engine.operations import Operation
from vectors.errors import LogGap, MemoryLimitReached, MLVectorDBError, NotReady, StorageError
from vectors.recall.reservoir import QueryReservoir
from vectors.store import log, recovery
from vectors.store.appender import Appender

logger = logging.getLogger(__name__)

_REST_S = 1.0
_SWAP_TAILS = 1.5
_SWAP_PUT_OFF_S = 5.0
_REST_TOLD_AGAIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether this process serves at full speed, and how far it is."""

    ready: bool
    percent: float
    detail: Mapping[str, Any] = field(default_factory=dict)


class ShardRuntime:
    """The engine of one shard copy in this process."""

    def __init__(self, shard_id: int, *, budget: ColumnBudget) -> None:
        self.shard_id = shard_id
        self.appender = Appender(shard_id)
        self.progress = recovery.Progress()
        self._budget = budget
        self._opened: recovery.OpenShard | None = None
        self._unfit_manifest: int | None = None
        self._lock = threading.RLock()
        self.on_rest: Callable[[str, int], object] = _ask_for_checkpoint
        self._still_since: tuple[int, float] = (0, 0.0)
        self._swap_put_off: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether the engine is mapped and replayed."""
        return self._opened is not None

    @property
    def opened(self) -> recovery.OpenShard | None:
        """The engine as it is now, not caught up; None before it is open."""
        return self._opened

    def fresh(self, *, timeout_s: float) -> recovery.OpenShard:
        """Return the engine caught up with every entry committed before the call.

        Raise NotReady when that takes longer than `timeout_s`.
        """
        opened = self._opened
        mark = log.read_mark(self.shard_id)
        if mark is not None and opened is not None:
            incarnation, last_seq = mark
            if opened.head.incarnation == incarnation and opened.engine.seq >= last_seq:
                return opened
        head = None if mark is None else log.read_head(self.shard_id)
        if head is None:
            raise NotReady(f"shard copy {self.shard_id} has left this node", retry_after_s=1)
        return self.caught_up(head, timeout_s=timeout_s)

    def caught_up(self, head: log.Head, *, timeout_s: float) -> recovery.OpenShard:
        """Return the engine with the log applied up to `head`, opening or rebuilding it where that must be."""
        if not self._lock.acquire(timeout=timeout_s):
            raise NotReady(
                f"shard {head.label} is being opened: {self.progress.percent:.0f} %",
                detail={"percent": round(self.progress.percent, 1)},
                retry_after_s=1,
            )
        try:
            opened = self._opened
            if opened is not None and opened.head.incarnation == head.incarnation:
                if opened.engine.seq >= head.last_seq:
                    return opened
                try:
                    recovery.catch_up(opened, through=head.last_seq)
                    return opened
                except LogGap:
                    logger.info(
                        "engine_rebuilt shard=%s applied=%d head=%d", head.label, opened.engine.seq, head.last_seq
                    )
                except MLVectorDBError:
                    raise
                except Exception:
                    # Half applied, for want of memory say: the next request builds an engine anew.
                    self._opened = None
                    raise
            self._opened = recovery.open_shard(self.shard_id, budget=self._budget, progress=self.progress, known=opened)
            return self._opened
        finally:
            self._lock.release()

    def applied(self, position: log.Position, *, namespace: str, operation: Operation, timeout_s: float) -> int | None:
        """Apply an entry that this process has just committed; return how many rows it changed.

        None when this process cannot tell: the engine was exchanged for one that has it already, or must be built anew.
        """
        opened = self._opened
        if opened is not None and opened.engine.seq == position.seq - 1 and self._lock.acquire(timeout=timeout_s):
            try:
                if self._opened is opened and opened.engine.seq == position.seq - 1:
                    opened.engine.apply(seq=position.seq, term=position.term, namespace=namespace, operation=operation)
            except Exception:
                # The entry is committed all the same: the next request builds an engine anew.
                logger.exception("apply_failed shard=%s seq=%d", opened.head.label, position.seq)
                self._opened = None
                return None
            finally:
                self._lock.release()
        if opened is None or opened.engine.seq < position.seq:
            opened = self.fresh(timeout_s=timeout_s)
        return opened.engine.result(position.seq)

    def swap(self) -> bool:
        """Stand on the newest manifest, if this engine does not yet: map what is new, replay the rest, then exchange.

        Searches go on over the old engine meanwhile. Return whether there was something to do.
        """
        opened = self._opened
        head = log.read_head(self.shard_id)
        if opened is None or head is None or opened.damage:
            return False
        if head.manifest in (opened.manifest.number, self._unfit_manifest):
            return False
        exchange = recovery.exchange_prepare(opened, head)
        if exchange is not None:
            with self._lock:
                if self._opened is not opened:
                    return False
                if exchange.apply():
                    logger.info("segments_exchanged shard=%s manifest=%d", head.label, head.manifest)
                    return True
        if self._another_is_near(head):
            return False
        fresh = recovery.open_shard(self.shard_id, budget=self._budget, known=opened)
        if fresh.head.incarnation != opened.head.incarnation:
            # Cut back or refilled: the next request finds that out, and has nothing to take over from this engine.
            return False
        with self._lock:
            if self._opened is not opened:
                return False
            if not fresh.damage:
                recovery.catch_up(fresh, through=max(fresh.engine.seq, opened.engine.seq))
            if fresh.damage:
                # This engine still has every row: it goes on, while the damage keeps writes out.
                self._unfit_manifest = fresh.manifest.number
                return False
            fresh.engine.adopt_results(opened.engine)
            self._opened = fresh
        logger.info("segments_swapped shard=%s manifest=%d seq=%d", head.label, fresh.manifest.number, fresh.engine.seq)
        return True

    def _another_is_near(self, head: log.Head) -> bool:
        """Whether so much of the log lies behind the newest manifest that the next checkpoint is near.

        To swap now would be to replay all of that, in every worker, and soon again. Not for long: a process that falls
        behind checkpoints frees its memory all the same.
        """
        if head.tail_bytes <= _SWAP_TAILS * settings.MLVDB_TAIL_SOFT_BYTES:
            self._swap_put_off = None
            return False
        now = time.monotonic()
        if self._swap_put_off is None:
            self._swap_put_off = now
        if now - self._swap_put_off < _SWAP_PUT_OFF_S:
            return True
        self._swap_put_off = None
        return False

    def look_for_rest(self, head: log.Head) -> None:
        """Tell `on_rest` when a tail beyond MLVDB_TAIL_REST_BYTES has got no entry for a second, seen from here.

        Then what was loaded is in segments, and indexed, a few seconds after its end. Told again after a while only.
        """
        now = time.monotonic()
        last_seq, since = self._still_since
        if last_seq != head.last_seq or head.tail_bytes <= settings.MLVDB_TAIL_REST_BYTES or head.damage is not None:
            self._still_since = (head.last_seq, now)
        elif now - since >= _REST_S:
            self._still_since = (last_seq, now + _REST_TOLD_AGAIN_S)
            self.on_rest(head.uid, last_seq)


class Runtime:
    """All shard copies of this process, and the thread that looks after them."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.budget = ColumnBudget(settings.MLVDB_FILTER_CACHE_BYTES)
        self.queries = QueryReservoir()
        self._shards: dict[int, ShardRuntime] = {}
        self._lock = threading.Lock()
        self._warm = threading.Event()
        self._stop = threading.Event()
        self._error: str | None = None
        self._database_away = False
        self._memory_bytes = 0
        self._memory_lock = threading.Lock()
        self._keeper = threading.Thread(target=self._keep, name="engine-keeper", daemon=True)

    def start(self) -> None:
        """Start opening the shards in the background."""
        self._keeper.start()

    def stop(self) -> None:
        """End the background thread (tests)."""
        self._stop.set()
        if self._keeper.is_alive():
            self._keeper.join(timeout=10)

    def shard(self, shard_id: int) -> ShardRuntime:
        """Return the runtime of a shard copy."""
        shard = self._shards.get(shard_id)
        if shard is None:
            with self._lock:
                shard = self._shards.setdefault(shard_id, ShardRuntime(shard_id, budget=self.budget))
        return shard

    def shards(self) -> Sequence[ShardRuntime]:
        """Return the runtimes made so far."""
        return list(self._shards.values())

    def readiness(self) -> Readiness:
        """Return whether every shard copy is open, and the database there: every request asks it for the head."""
        shards = self.shards()
        total = sum(shard.progress.total for shard in shards)
        done = sum(min(shard.progress.done, shard.progress.total) for shard in shards)
        warm = self._warm.is_set()
        percent = 100.0 if warm else min(99.0, 100.0 * done / total) if total else 0.0
        detail: dict[str, Any] = {"bytes_done": done, "bytes_total": total}
        if self._error is not None:
            detail["error"] = self._error
        damage = {
            shard.opened.head.label: shard.opened.damage for shard in shards if shard.opened and shard.opened.damage
        }
        if damage:
            detail["damage"] = damage
        return Readiness(warm and not self._database_away, percent, detail)

    def memory_bytes(self) -> int:
        """Return the estimated bytes of the node's engines: segments once, tails in every worker."""
        opened = [shard.opened for shard in self.shards() if shard.opened is not None]
        mapped = sum(item.engine.mapped_bytes for item in opened)
        return int(mapped + settings.MLVDB_WORKERS * sum(item.engine.tail_bytes for item in opened))

    @contextmanager
    def reserved_memory(self, extra_bytes: int) -> Iterator[None]:
        """Count in a batch of `extra_bytes` while it is written; raise MemoryLimitReached when it would not fit.

        What was written stays counted until the next round of the background thread, which measures; what was refused
        does not.
        """
        limit = memory_limit()
        wanted = settings.MLVDB_WORKERS * extra_bytes
        with self._memory_lock:
            if self._memory_bytes + wanted > limit:
                raise MemoryLimitReached(
                    "the batch does not fit in MLVDB_MEMORY_LIMIT; delete rows or raise it",
                    detail={
                        "estimated_bytes": self._memory_bytes,
                        "batch_bytes": extra_bytes,
                        "limit_bytes": limit,
                    },
                )
            self._memory_bytes += wanted
        try:
            yield
        except BaseException:
            with self._memory_lock:
                self._memory_bytes = max(0, self._memory_bytes - wanted)
            raise

    def _keep(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    self._look_after()
                    self._error, self._database_away = None, False
                except Exception as error:
                    # The database may be away for a while; requests report that, this thread only comes back.
                    self._error, self._database_away = str(error), isinstance(error, StorageError)
                    logger.warning("engine_keeper_failed error=%s", error, exc_info=not self._warm.is_set())
                    with suppress(Exception):
                        connection.close()
                self._stop.wait(settings.MLVDB_IDLE_CATCH_UP_S)
        finally:
            connection.close()

    def _look_after(self) -> None:
        heads = log.read_heads()
        failed: Exception | None = None
        for head in heads:
            try:
                self._look_after_shard(head)
            except Exception as error:
                # A shard whose files cannot be read, say: the others are looked after all the same.
                failed = failed or error
        self.queries.flush()
        self._memory_bytes = self.memory_bytes()
        gone = set(self._shards) - {head.shard_id for head in heads}
        for shard_id in gone:
            del self._shards[shard_id]
        if failed is not None:
            raise failed
        if not self._warm.is_set():
            release_memory()
            self._warm.set()

    def _look_after_shard(self, head: log.Head) -> None:
        shard = self.shard(head.shard_id)
        shard.caught_up(head, timeout_s=settings.MLVDB_IDLE_CATCH_UP_S if shard.is_open else 3600.0)
        # First: a new engine may take seconds to open, while which nobody would ask for the next checkpoint.
        shard.look_for_rest(head)
        if shard.swap():
            release_memory()


_runtime: Runtime | None = None
_runtime_lock = threading.Lock()


def _ask_for_checkpoint(shard_uid: str, seq: int) -> object:
    from mlvdb_site.celery import publish

    return publish("vectors.tasks.checkpoint_rested", shard_uid, seq)


def runtime() -> Runtime:
    """Return this process's runtime, made and started on first use; a forked child makes its own."""
    global _runtime
    current = _runtime
    if current is not None and current.process == os.getpid():
        return current
    with _runtime_lock:
        if _runtime is None or _runtime.process != os.getpid():
            _runtime = Runtime()
            _runtime.start()
        return _runtime


def reset() -> None:
    """Throw this process's engines away (tests, libraries that change their database)."""
    global _runtime
    with _runtime_lock:
        current, _runtime = _runtime, None
    if current is not None and current.process == os.getpid():
        current.stop()


def readiness() -> Readiness:
    """Return the readiness of this process, starting its runtime if need be."""
    return runtime().readiness()


def memory_limit() -> int:
    """Return MLVDB_MEMORY_LIMIT in bytes, 80 % of the machine's memory when it is 0."""
    if settings.MLVDB_MEMORY_LIMIT:
        return int(settings.MLVDB_MEMORY_LIMIT)
    return int(0.8 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def release_memory() -> None:
    """Give freed heap pages back to the system, after a swap has dropped a tail (glibc keeps them otherwise)."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except (OSError, AttributeError):
            logger.debug("malloc_trim is not available")
