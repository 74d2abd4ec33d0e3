"""A coordinator and its shards: local ones are copies of this process's node, remote ones listen and answer as told."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson
from django.db import connections, transaction

from cluster.models import Move, MoveStep, Shard, Topology
from cluster.query_processor import means
from cluster.sharding.table import SlotTable
from cluster.states import PeerHealth, ShardState
from cluster.topology import topology_forget
from cluster.transport import wire
from mlvdb_site.markers import topology_changed
from tests.cluster.scripted_peer import Connection, Request, ScriptedPeer
from vectors.engine import ids
from vectors.engine.slots import SlotSet
from vectors.errors import MLVectorDBError
from vectors.models import ShardHead
from vectors.query_processor import LocalQueryProcessor, VectorBatch

CLUSTER = "c" * 32
_ROUTE = re.compile(r"/cluster/node/shards/([0-9a-f]{32})/(read|write)")

#: In the place of what a shard's node does with a request: (operation, arguments, options) → what it answers.
Behaviour = Callable[[wire.ReadRequest, Callable[[], Any]], Any]


class RemoteShard:
    """A shard on another node: it listens, and answers from a copy in this process's database.

    `behaviour` takes a request and what would be done, and may do something else. `asked` are the requests so far.
    """

    def __init__(self, uid: str, shard_id: int) -> None:
        self.uid = uid
        self.processor = LocalQueryProcessor(shard_id)
        self.behaviour: Behaviour | None = None
        self.asked: list[wire.ReadRequest] = []
        self.script: Callable[[Connection, Request], bool] | None = None
        self._peer = ScriptedPeer(self._serve)

    @property
    def url(self) -> str:
        """Where it listens."""
        return self._peer.url

    def close(self) -> None:
        """End it: connections are refused from now on."""
        self._peer.close()

    def _serve(self, connection: Connection) -> None:
        try:
            while (request := connection.request()) is not None:
                if self.script is not None and self.script(connection, request):
                    return
                self._answer(connection, request)
        finally:
            connections.close_all()

    def _answer(self, connection: Connection, request: Request) -> None:
        route = _ROUTE.fullmatch(urlsplit(request.target).path)
        if route is None:
            connection.answer(b"", status=204)
            return
        asked = wire.read_of(request.body)
        self.asked.append(asked)
        try:
            answer = self._done(asked)
        except MLVectorDBError as error:
            shape = {"code": error.code, "message": error.message, "field": error.field, "detail": error.detail}
            connection.answer(orjson.dumps({"error": shape, "request_id": None}), status=error.status)
            return
        if route[2] == "write":
            connection.answer(wire.write_answer_body(answer))
        else:
            connection.answer(wire.answer_body(asked.operation, answer))

    def _done(self, asked: wire.ReadRequest) -> Any:
        def do() -> Any:
            return getattr(self.processor, asked.operation)(**asked.arguments, options=asked.options)

        return do() if self.behaviour is None else self.behaviour(asked, do)


class Coordinator:
    """This node as a coordinator of `local` shards, `shard_0` and so on, and of `remote` ones, `remote_0` and so on."""

    def __init__(self, head: ShardHead, *, local: int = 2, remote: int = 0, strategy: str = "hash") -> None:
        self.remote: list[RemoteShard] = []
        heads = [head] + [ShardHead.objects.create(label=f"shard_{number}") for number in range(1, local)]
        with transaction.atomic():
            Topology.objects.create(cluster=CLUSTER, sharding_enabled=True, strategy=strategy, epoch=1)
            for own in heads[:local]:
                self._add(own.label, own.uid)
            for number in range(remote):
                copy = ShardHead.objects.create(label=f"copy_of_{number}", uid=secrets.token_hex(16))
                self.remote.append(RemoteShard(copy.uid, copy.pk))
                self._add(f"remote_{number}", copy.uid, url=self.remote[-1].url, health=PeerHealth.ALIVE)
        self.spread(np.arange(ids.SLOT_COUNT) % len(self.shards))
        means.means_forget()
        topology_forget()

    def _add(self, label: str, uid: str, **fields: Any) -> None:
        Shard.objects.create(label=label, uid=uid, state=ShardState.ACTIVE, **fields)

    @property
    def shards(self) -> list[Shard]:
        """The rows of the registry, in the order of their labels."""
        return list(Shard.objects.order_by("label"))

    @property
    def epoch(self) -> int:
        """The epoch of the cluster."""
        return int(Topology.objects.get().epoch)

    def spread(self, owners: np.ndarray | Sequence[int]) -> None:
        """Give each slot to the shard of that number among `shards`. Rows stay where they are."""
        keys = np.array([shard.pk for shard in self.shards], dtype=np.uint16)
        self.change(slots=SlotTable(keys[np.asarray(owners)]).to_bytes())

    def change(self, **fields: Any) -> None:
        """Change the topology's row, and raise its epoch."""
        with transaction.atomic():
            Topology.objects.update(epoch=self.epoch + 1, **fields)
            topology_changed()

    def shard(self, label: str, **fields: Any) -> None:
        """Change a shard's row."""
        with transaction.atomic():
            assert Shard.objects.filter(label=label).update(**fields)
            Topology.objects.update(epoch=self.epoch + 1)
            topology_changed()

    def owner_of(self, key: object) -> str:
        """The label of the shard that an id leads to."""
        table = SlotTable.of_bytes(bytes(Topology.objects.get().slots))
        return Shard.objects.get(pk=int(table.owners[ids.slot_of(ids.key_of(key))])).label

    def ids_of(self, label: str, count: int = 1, *, start: int = 0) -> list[int]:
        """Return some ids that lead to a shard."""
        found: list[int] = []
        number = start
        while len(found) < count:
            if self.owner_of(number) == label:
                found.append(number)
            number += 1
        return found

    @contextmanager
    def closed(self, *keys: object) -> Iterator[None]:
        """Have a move close the slots of some ids while the block runs."""
        slots = SlotSet.of(ids.slots_of([ids.key_of(key) for key in keys]))
        source, target = self.shards[:2]
        move = Move.objects.create(kind=Move.Kind.REBALANCE)
        step = MoveStep.objects.create(
            move=move, uid=secrets.token_hex(16), source=source, target=target, slots=slots.packed, phase="closing"
        )
        self.change()
        yield
        with transaction.atomic():
            step.delete()
            topology_changed()

    def close(self) -> None:
        """End the remote shards."""
        for shard in self.remote:
            shard.close()


def rows(*keys: object, dimension: int = 3, value: float = 1.0) -> VectorBatch:
    """Return rows of equal values; a key that is None is for the server to make."""
    made = [None if key is None else ids.key_of(key) for key in keys]
    return VectorBatch(made, np.full((len(keys), dimension), value, dtype=np.float32), [b"{}"] * len(keys))


def labels(accounts: Iterable[Any]) -> list[str]:
    """Return the labels of the shards in an account."""
    return [account.shard for account in accounts]
