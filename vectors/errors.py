"""The domain errors of a node: one tree, each with its code, HTTP status hint and whether trying again may help.

Pure Python: the engine raises these too. `mlvdb_site.http.errors` turns them into the one error shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class MLVectorDBError(Exception):
    """The root; never raised itself."""

    code = "error"
    status = 500
    transient = False

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        detail: Mapping[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.detail = dict(detail or {})
        self.retry_after_s = retry_after_s


class InvalidInput(MLVectorDBError):
    """Raised when a request cannot be understood; `field` names the part of it."""

    code = "invalid_input"
    status = 400


class DimensionMismatch(InvalidInput):
    """Raised when a vector's length is not the dimension of its namespace."""

    code = "dimension_mismatch"


class InvalidFilter(InvalidInput):
    """Raised when a filter is not of the grammar: unknown lookup, value of the wrong shape, too deep, too many."""

    code = "invalid_filter"


class NotFound(MLVectorDBError):
    """Raised when a named thing does not exist."""

    code = "not_found"
    status = 404


class NamespaceNotFound(NotFound):
    """Raised when a namespace must exist and does not."""

    code = "namespace_not_found"


class VectorNotFound(NotFound):
    """Raised when an id is not in the namespace."""

    code = "vector_not_found"


class Conflict(MLVectorDBError):
    """Raised when a request contradicts what is committed."""

    code = "conflict"
    status = 409


class NotPrimary(Conflict):
    """Raised when a copy that does not order its shard's writes is asked to (or has promised not to any more).

    `detail` has the shard; the cluster adds `primary_url`. Also raised when a copy that still is the primary of an
    older term is to be filled by a newer one: it has to be released first.
    """

    code = "not_primary"


class TokenLost(Conflict):
    """Raised when a `min_seq` token names an entry that this log does not have and will not get."""

    code = "token_lost"


class SlotsClosed(Conflict):
    """Raised when rows are written in slots that this copy does not own, or not at the moment; `detail`: slots.

    Nothing was written. Whoever spread the rows over shards looks where they belong now.
    """

    code = "slots_closed"


class StaleScope(Conflict):
    """Raised when a request was planned by an older slot table than this copy's slots were changed at; `detail`: epoch.

    What it would answer may be doubled or missing somewhere else: the whole request is planned anew.
    """

    code = "stale_scope"


class CursorMismatch(Conflict):
    """Raised when rows of a move do not follow those that have come in; `detail`: cursor, where they have to begin."""

    code = "cursor_mismatch"


class SlotsOwned(Conflict):
    """Raised when rows of slots are to be brought or removed by a move that clients may write here; `detail`: slots."""

    code = "slots_owned"


class NotEmpty(Conflict):
    """Raised when a node that has to be empty holds data of its own; `detail`: rows, namespaces."""

    code = "not_empty"


class SyncUnknown(Conflict):
    """Raised when a full sync goes on that this copy was never offered, or that a newer one replaced: offer again."""

    code = "sync_unknown"


class SyncIncomplete(Conflict):
    """Raised when a full sync is to be installed before all of its files are there; `detail`: missing (some of them).

    Offering again answers what is wanted.
    """

    code = "sync_incomplete"


class SyncBehind(Conflict):
    """Raised when a full sync would take a copy back behind entries it shares with the sender and cannot keep.

    `detail`: seq, which the sender's manifest has to reach (a checkpoint does that).
    """

    code = "sync_behind"


class TooLarge(MLVectorDBError):
    """Raised when a body or row exceeds its limit."""

    code = "too_large"
    status = 413


class Unavailable(MLVectorDBError):
    """Raised when a request cannot be answered now; trying again later may help."""

    code = "unavailable"
    status = 503
    transient = True


class NotReady(Unavailable):
    """Raised while a shard is still being mapped and replayed."""

    code = "not_ready"


class NotEnoughCopies(Unavailable):
    """Raised when the copies asked for had not all answered in time; `detail`: acknowledged, required, ids, seq."""

    code = "not_enough_copies"


class Busy(Unavailable):
    """Raised when as many threads of the process are waiting as may; trying again soon helps."""

    code = "busy"


class CheckpointBehind(Unavailable):
    """Raised when the tail has reached its hard limit."""

    code = "checkpoint_behind"


class StorageBusy(Unavailable):
    """Raised when the database's write lock was not to be had in time."""

    code = "storage_busy"


class StorageError(Unavailable):
    """Raised when the database or a file failed; nothing was acknowledged."""

    code = "storage_error"


class ShardDamaged(Unavailable):
    """Raised when a corrupt record or file makes a complete answer impossible, and for every write to such a shard."""

    code = "shard_damaged"
    transient = False


class WrongNode(Unavailable):
    """Raised when another node made the shard copies in the database: their segments are in its data dir, not here."""

    code = "wrong_node"
    transient = False


class StorageFull(MLVectorDBError):
    """Raised when the disk has no room for a write."""

    code = "storage_full"
    status = 507


class MemoryLimitReached(MLVectorDBError):
    """Raised when a batch would take the engines beyond MLVDB_MEMORY_LIMIT."""

    code = "memory_limit"
    status = 507


class LogError(MLVectorDBError):
    """The root of what can be wrong with a log; handled inside the store and runtime."""

    code = "log_error"


class LogGap(LogError):
    """Raised when entries between an engine and the head are not in the log (pruned, or cut)."""

    code = "log_gap"


class LogMismatch(LogError):
    """Raised when a copy has another entry where a slice begins or within it.

    `detail`: term and seq (its last position), common_term and common_seq (an upper bound of what it shares with the
    sender), terms (where each of its terms begins).
    """

    code = "log_mismatch"


class StaleTerm(LogError):
    """Raised when a copy has promised a higher term, or its vote in this one to another; `detail`: promised_term."""

    code = "stale_term"


class CorruptRecord(LogError):
    """Raised when a log record's checksum or form is wrong; `seq` is the record's."""

    code = "corrupt_record"

    def __init__(self, message: str, *, seq: int) -> None:
        super().__init__(message, detail={"seq": seq})
        self.seq = seq


class CorruptSegment(LogError):
    """Raised when a segment's file is missing, short, or fails its checksum."""

    code = "corrupt_segment"


class LeaseLost(LogError):
    """Raised when a lease was taken over while its holder worked; nothing was committed."""

    code = "lease_lost"
