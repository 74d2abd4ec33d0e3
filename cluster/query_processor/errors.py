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


class NodeChanging(ShardUnavailable):
    """Raised while another node takes over as a shard's primary: a write waits for that until its deadline."""


class AnswerVoid(NodeChanging):
    """Raised for a write that a shard's node has answered, when it was that shard's node no more: it may have been set
    aside there, and is repeated at the node that is."""


class PartialWrite(Unavailable):
    """Raised when not every shard has committed its part of a write.

    `detail`: ids (all, in the order of the request), failed_ids, shards (label → status committed, unknown or refused,
    with seq or code). Repeating the write with its ids is harmless.
    """

    code = "partial_write"


class SlotsMoving(Unavailable):
    """Raised when the slots of a write were closed by a move until its deadline. Nothing was written."""

    code = "slots_closed"
