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


class TokenLost(Conflict):
    """Raised when a `min_seq` token names an entry that this log does not have and will not get."""

    code = "token_lost"


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
