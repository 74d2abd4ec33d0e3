"""The two ends of a move: a shard's primary copy, on this node or on another one, behind one protocol."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import orjson
from django.conf import settings

from cluster.models import Shard, Topology
from cluster.replication import lanes
from cluster.replication.knocks import knock
from cluster.transport.client import PeerAnswer, peer_client
from cluster.transport.errors import PeerGarbled, PeerRejected, refusals
from cluster.transport.messages import shard_path
from vectors import errors
from vectors.engine.ids import SLOT_COUNT
from vectors.engine.namespace import NamespaceSpec
from vectors.engine.operations import Operation, PayloadError
from vectors.engine.slots import SlotSet
from vectors.errors import NotReady
from vectors.models import ShardHead
from vectors.query_processor import moving_wire
from vectors.query_processor.moving import EntriesPage, MovingCopy, RowsPage
from vectors.store.log import Position
from vectors.store.slots import SlotsNow

BINARY = "application/octet-stream"


class ShardEnd(Protocol):
    """What a move does at a shard; see `vectors.query_processor.moving.MovingCopy`, whose errors both kinds raise.

    One on another node raises those of `cluster.transport` as well. `deadline` is the moment of the monotonic clock
    until which its answers are waited for, None where the time-out of a single request is enough.
    """

    deadline: float | None

    def position(self) -> Position:
        """Return where the log ends."""

    def pin(self, holder: str, seq: int) -> None:
        """Keep the log after `seq` for a holder."""

    def unpin(self, holder: str) -> None:
        """Let go of it."""

    def rows(self, slots: SlotSet, *, after: str, max_bytes: int) -> RowsPage:
        """Return rows of some slots as they are now, page by page."""

    def entries(self, slots: SlotSet, *, after: Position, max_bytes: int) -> EntriesPage:
        """Return what the log after a position does to rows of some slots."""

    def take(
        self,
        move: str,
        *,
        before: str,
        after: str,
        operations: Sequence[tuple[str, Operation]],
        namespaces: Mapping[str, NamespaceSpec],
    ) -> Position:
        """Add rows of another shard, moving the cursor in the same transaction."""

    def cursor(self, move: str) -> str:
        """Return where the next `take` must begin; empty when nothing was taken."""

    def set_slots(self, epoch: int, writable: SlotSet, *, cursor_of: str = "") -> Position:
        """Let the shard be written in some slots only; return the position since when.

        With `cursor_of`, a move, only where its rows are: where its cursor is that of one that follows.
        """

    def slot_changes(self) -> list[SlotsNow]:
        """Return since when the shard may be written in which slots, the oldest change that is known first."""

    def namespaces(self) -> list[NamespaceSpec]:
        """Return the namespaces that live there, in order of their names."""

    def clean(self, slots: SlotSet, *, move: str = "", epoch: int | None = None) -> int:
        """Delete the rows of slots that are not writable there; return how many there were."""

    def forget(self, move: str) -> None:
        """Forget a cursor."""

    def slot_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and bytes of each slot: (16384,) int64 each."""

    def wait_quorum(self, position: Position, *, timeout_s: float) -> bool:
        """Wait until a quorum of the shard's members have a position; return whether they do."""


class LocalEnd(MovingCopy):
    """A shard of this node."""

    deadline: float | None = None

    def __init__(self, shard_id: int, uid: str) -> None:
        super().__init__(shard_id, on_knock=knock)
        self._uid = uid

    def wait_quorum(self, position: Position, *, timeout_s: float) -> bool:
        """Wait until a quorum of the shard's members have a position; return whether they do."""
        return lanes.wait_for(self._uid, position, "quorum", deadline=time.monotonic() + timeout_s).reached


class RemoteEnd:
    """A shard on another node, asked through `/cluster/node/shards/<uid>/slots/`."""

    deadline: float | None = None

    def __init__(self, url: str, cluster: str, uid: str) -> None:
        self._url, self._cluster, self._uid = url, cluster, uid

    def position(self) -> Position:
        """Return where the log ends."""
        return self._position(self._ask("position", {}))

    def pin(self, holder: str, seq: int) -> None:
        """Keep the log after `seq` for a holder."""
        self._ask("pin", {"holder": holder, "seq": seq})

    def unpin(self, holder: str) -> None:
        """Let go of it."""
        self._ask("unpin", {"holder": holder})

    def rows(self, slots: SlotSet, *, after: str, max_bytes: int) -> RowsPage:
        """Return rows of some slots as they are now, page by page."""
        answer = self._call("rows", {"slots": text_of(slots), "after": after, "max_bytes": max_bytes})
        return self._read(answer, moving_wire.decode_rows)

    def entries(self, slots: SlotSet, *, after: Position, max_bytes: int) -> EntriesPage:
        """Return what the log after a position does to rows of some slots."""
        answer = self._call("entries", {"slots": text_of(slots), "after": list(after), "max_bytes": max_bytes})
        return self._read(answer, moving_wire.decode_entries)

    def take(
        self,
        move: str,
        *,
        before: str,
        after: str,
        operations: Sequence[tuple[str, Operation]],
        namespaces: Mapping[str, NamespaceSpec],
    ) -> Position:
        """Add rows of another shard, moving the cursor in the same transaction."""
        request = moving_wire.TakeRequest(move, before, after, operations, namespaces)
        return self._position(self._json(self._send("take", moving_wire.encode_take(request), BINARY)))

    def cursor(self, move: str) -> str:
        """Return where the next `take` must begin; empty when nothing was taken."""
        return str(self._asked("cursor", "cursor", {"move": move}))

    def set_slots(self, epoch: int, writable: SlotSet, *, cursor_of: str = "") -> Position:
        """Let the shard be written in some slots only; return the position since when."""
        body = {"epoch": epoch, "slots": text_of(writable), "cursor_of": cursor_of}
        return self._position(self._ask("set", body))

    def slot_changes(self) -> list[SlotsNow]:
        """Return since when the shard may be written in which slots, the oldest change that is known first."""
        try:
            changes = self._asked("slots", "changes", {})
            return [SlotsNow(int(seq), int(epoch), slots_of_text(text)) for seq, epoch, text in changes]
        except (TypeError, ValueError) as error:
            raise PeerGarbled(f"answered no changes of slots: {error!r}", url=self._url) from None

    def namespaces(self) -> list[NamespaceSpec]:
        """Return the namespaces that live there, in order of their names."""
        try:
            found = self._asked("namespaces", "namespaces", {})
            return [
                NamespaceSpec(str(uid), str(name), int(dimension), metric, float(recall_target), str(picture))
                for uid, name, dimension, metric, recall_target, picture in found
            ]
        except (TypeError, ValueError) as error:
            raise PeerGarbled(f"answered no namespaces: {error!r}", url=self._url) from None

    def clean(self, slots: SlotSet, *, move: str = "", epoch: int | None = None) -> int:
        """Delete the rows of slots that are not writable there; return how many there were."""
        body = {"slots": text_of(slots), "move": move, "epoch": epoch}
        rows = self._asked("clean", "rows", body)
        if type(rows) is not int:
            raise PeerGarbled("answered no number of rows", url=self._url)
        return rows

    def forget(self, move: str) -> None:
        """Forget a cursor."""
        self._ask("forget", {"move": move})

    def slot_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and bytes of each slot: (16384,) int64 each."""
        answer = self._call("counts", {})
        if len(answer.body) != 16 * SLOT_COUNT:
            raise PeerGarbled("answered counts of another length", url=self._url)
        counts = np.frombuffer(answer.body, dtype="<i8")
        return counts[:SLOT_COUNT], counts[SLOT_COUNT:]

    def wait_quorum(self, position: Position, *, timeout_s: float) -> bool:
        """Wait until a quorum of the shard's members have a position; return whether they do."""
        body = {"position": list(position), "timeout_s": timeout_s}
        return self._asked("quorum", "reached", body, timeout_s=timeout_s + 0.5) is True

    def _asked(self, operation: str, name: str, body: Mapping[str, Any], *, timeout_s: float | None = None) -> Any:
        answer = self._ask(operation, body, timeout_s=timeout_s)
        if name not in answer:
            raise PeerGarbled(f"answered without {name}", url=self._url)
        return answer[name]

    def _ask(self, operation: str, body: Mapping[str, Any], *, timeout_s: float | None = None) -> dict[str, Any]:
        return self._json(self._call(operation, body, timeout_s=timeout_s))

    def _call(self, operation: str, body: Mapping[str, Any], *, timeout_s: float | None = None) -> PeerAnswer:
        return self._send(operation, orjson.dumps(dict(body)), "application/json", timeout_s=timeout_s)

    def _send(self, operation: str, body: bytes, content_type: str, *, timeout_s: float | None = None) -> PeerAnswer:
        timeout_s = timeout_s or settings.MLVDB_PEER_TIMEOUT_S
        if self.deadline is not None:
            timeout_s = min(timeout_s, max(0.001, self.deadline - time.monotonic()))
        try:
            return peer_client().call(
                self._url,
                "POST",
                shard_path(self._uid, f"slots/{operation}", cluster=self._cluster),
                body=body,
                content_type=content_type,
                timeout_s=timeout_s,
                even_if_silent=True,
            )
        except PeerRejected as rejected:
            raise rejected.as_own(_REFUSALS) or rejected from rejected

    def _json(self, answer: PeerAnswer) -> dict[str, Any]:
        try:
            found = orjson.loads(answer.body)
        except ValueError as error:
            raise PeerGarbled(f"answered nothing that can be read: {error}", url=self._url) from None
        if not isinstance(found, dict):
            raise PeerGarbled("answered no object", url=self._url)
        return found

    def _position(self, found: Mapping[str, Any]) -> Position:
        try:
            term, seq = found["position"]
            return Position(int(term), int(seq))
        except (KeyError, TypeError, ValueError) as error:
            raise PeerGarbled(f"answered no position: {error!r}", url=self._url) from None

    def _read(self, answer: PeerAnswer, decode: Any) -> Any:
        try:
            return decode(answer.body)
        except PayloadError as error:
            raise PeerGarbled(f"answered no page: {error}", url=self._url) from None


def end_of(shard: Shard) -> ShardEnd:
    """Return the end of a move at a shard; raise NotReady when a local one's copy is not on this node."""
    if not shard.is_local:
        return RemoteEnd(shard.url, Topology.objects.get().cluster, shard.uid)
    head = ShardHead.objects.filter(uid=shard.uid).first()
    if head is None:
        raise NotReady(f"the copy of shard {shard.label} is not on this node")
    return LocalEnd(head.pk, shard.uid)


def text_of(slots: SlotSet) -> str:
    """Return slots as they stand in JSON."""
    return base64.b64encode(slots.packed).decode()


def slots_of_text(text: object) -> SlotSet:
    """Read what `text_of` returned; raise ValueError for anything else."""
    if not isinstance(text, str):
        raise ValueError("slots are a text")
    return SlotSet(base64.b64decode(text, validate=True))


_REFUSALS = refusals(
    errors.CheckpointBehind,
    errors.Conflict,
    errors.CursorMismatch,
    errors.NotPrimary,
    errors.SlotsOwned,
    errors.StaleScope,
) | refusals(errors.LogGap, errors.LogMismatch, status=409)
"""What a copy on this node raises as well."""
