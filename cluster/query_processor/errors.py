"""What a read over copies may fail with, beside the errors of one node."""

from __future__ import annotations

from vectors.errors import Unavailable


class CopySyncing(Unavailable):
    """Raised when the copy that is asked has no whole state of the shard yet, or not any more: it is being filled."""

    code = "copy_syncing"


class CopyBehind(Unavailable):
    """Raised when the copy that is asked did not reach the state that was asked for in time; `detail` says how far it
    is."""

    code = "copy_behind"


class ShardUnavailable(Unavailable):
    """Raised when no copy of a shard that may answer could be asked in time; `detail` says why, copy by copy."""

    code = "shard_unavailable"
