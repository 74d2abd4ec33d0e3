"""`ShardingManagerImpl`: the shards of a program, over the services that REST and the admin use."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from cluster.library.background import background_processes
from cluster.library.engines import EnginePort, new_ids, sharding_now
from cluster.library.preparation import ACTOR, interval_check, prepare
from vectors.engine.ids import key_of, slot_of
from vectors.errors import Conflict, InvalidInput, Unavailable
from vectors.library import StorageEngineInMemory

if TYPE_CHECKING:
    from cluster.models import Move
    from vectors.library.vectors import AnyVector, Id

HEALTH_TASK = "cluster.tasks.health_shards"
STRATEGIES = ("hash", "round_robin")
DEFAULT_NAMESPACE = "default"
MOVE_WITHIN_S = 120.0

_LOOK_EVERY_S = 0.05


class MoveNotOver(Unavailable):
    """Raised when a move takes longer than its caller waits; it goes on in the background. `detail`: move, phase."""

    code = "move_not_over"


class MoveNotDone(Conflict):
    """Raised when a move has failed or was cancelled; `detail`: move, phase."""

    code = "move_not_done"


class ShardingManagerImpl:
    """Storage engines and nodes as the shards of this program. Thread-safe; used as a context or shut down.

    `shard_storages` are engines by shard id; one of them may have vectors already, which are then spread over all of
    them in the background. `sharding_strategy` hash or round_robin is how new ids are spread. `health_check_interval`
    is in seconds. A program has one such manager at a time; its moves and health rounds are run by Celery, in processes
    of the program until `shutdown`, the end of a `with`, or exit.
    """

    def __init__(
        self,
        shard_storages: Mapping[str, StorageEngineInMemory],
        sharding_strategy: str = "hash",
        health_check_interval: float = 10.0,
    ) -> None:
        interval_check(health_check_interval)
        if sharding_strategy not in STRATEGIES:
            raise InvalidInput(f"sharding_strategy is one of {', '.join(STRATEGIES)}", field="sharding_strategy")
        if not shard_storages:
            raise InvalidInput("shard_storages has no storage engine", field="shard_storages")
        self.sharding_strategy = sharding_strategy
        self.shard_storages: dict[str, StorageEngineInMemory] = dict(shard_storages)
        self._lock = threading.Lock()
        self._is_shut_down = False
        _running.enter(self)
        try:
            prepare(health_task=HEALTH_TASK, health_check_interval=health_check_interval)
            from cluster.library.program_shards import engines_enter

            engines_enter(self.shard_storages, strategy=sharding_strategy)
            for storage in self.shard_storages.values():
                _front(storage)
            background_processes().enter()
        except BaseException:
            _running.leave(self)
            raise
        self._end = weakref.finalize(self, background_processes().leave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()

    def shutdown(self) -> None:
        """End what runs in the background; a second time does nothing.

        The engines stay shards and keep what they have. Another manager of one of them goes on with all of them; one of
        other engines begins anew.
        """
        with self._lock:
            if self._is_shut_down:
                return
            self._is_shut_down = True
        _running.leave(self)
        self._end()

    def check_running(self) -> None:
        """Raise ValueError when this manager is shut down; start its processes again if they were killed."""
        if self._is_shut_down:
            raise ValueError("the sharding manager is shut down")
        background_processes().ensure()

    # Shards.

    @property
    def shard_count(self) -> int:
        """How many shards there are."""
        return len(self.list_shards())

    def list_shards(self) -> list[str]:
        """Return the ids of the shards, sorted."""
        from cluster.models import Shard
        from cluster.states import ShardState

        return list(Shard.objects.exclude(state=ShardState.REMOVED).order_by("label").values_list("label", flat=True))

    def add_shard(self, shard_id: str, url: str | None = None, *, weight: float = 1.0) -> bool:
        """Add a shard: the node at a URL, or without one a new storage engine; return whether it is new.

        It gets its share of the vectors in the background. Raise ShardExists when the id or the URL is another shard's,
        InvalidInput, and Conflict with the reason when a node cannot be a shard: it holds data, has replicas, belongs
        to another cluster.
        """
        self.check_running()
        if url is None:
            if shard_id in self.shard_storages:
                return False
            return self._add_storage(shard_id, StorageEngineInMemory(), weight, is_own=True)
        from cluster.services.sharding import shard_add

        _, is_new, _ = shard_add(label=shard_id, url=url, weight=weight, actor=ACTOR)
        return is_new

    def add_local_shard(self, shard_id: str, storage: StorageEngineInMemory, *, weight: float = 1.0) -> bool:
        """Add an empty storage engine as a shard; return whether it is new. It gets its share in the background.

        Raise ShardExists, and NotEmpty for an engine that has vectors.
        """
        self.check_running()
        return self._add_storage(shard_id, storage, weight)

    def remove_shard(self, shard_id: str, *, force: bool = False, timeout_s: float = MOVE_WITHIN_S) -> bool:
        """Move what a shard has to the others, wait for that, and remove it; return whether there was one.

        Its storage engine is closed then. Raise LastShard, ShardUnreachable when its rows cannot be had (`force` gives
        them up), MoveNotOver and MoveNotDone.
        """
        from cluster.services.sharding_removal import shard_remove

        self.check_running()
        if shard_id not in self.list_shards():
            return False
        deadline = time.monotonic() + timeout_s
        move = shard_remove(label=shard_id, force=force, actor=ACTOR)
        if move is not None:
            self._wait(move, deadline)
        while shard_id in self.list_shards():
            if move is not None and time.monotonic() > deadline:
                raise _not_over(move, timeout_s)
            time.sleep(_LOOK_EVERY_S)
        storage = self.shard_storages.pop(shard_id, None)
        if storage is not None:
            storage.close()
        return True

    # Where a vector belongs.

    def get_shard_for_vector(self, vector: AnyVector, namespace: str = DEFAULT_NAMESPACE) -> str:
        """Return the shard of a vector; one without an id gets it now, as the strategy says. Raise ShardUnavailable."""
        if vector.id is None:
            self.check_running()
            vector.id = new_ids(1)[0]
        return self.get_shard_for_id(vector.id, namespace)

    def get_shard_for_id(self, vector_id: Id, namespace: str = DEFAULT_NAMESPACE) -> str:
        """Return the shard that an id belongs to, in every namespace. Raise InvalidInput for what is no id."""
        self.check_running()
        return sharding_now().owner_of(slot_of(key_of(vector_id))).label

    def get_shards_for_search(self, namespace: str = DEFAULT_NAMESPACE) -> list[str]:
        """Return the shards that a search asks: those that own ids, without any that is known to be down."""
        from cluster.query_processor.sharded.routing import is_dead, owning

        self.check_running()
        return [member.label for member in owning(sharding_now()) if not is_dead(member)]

    # Moves.

    def redistribute_data(self, from_shard_id: str, to_shard_id: str, *, timeout_s: float = MOVE_WITHIN_S) -> int:
        """Move all that one shard has to another, and wait for it; return the number of the move.

        Raise ShardNotFound, MoveNotOver and MoveNotDone.
        """
        from cluster.models import Move
        from cluster.moves.control import move_request
        from cluster.services.sharding_rows import shard_of

        self.check_running()
        source, target = shard_of(from_shard_id), shard_of(to_shard_id)
        move = move_request(Move.Kind.REDISTRIBUTE, source=source, target=target, actor=ACTOR)
        return self._wait(move, time.monotonic() + timeout_s)

    def redistribute_all_data(self, *, timeout_s: float = MOVE_WITHIN_S) -> int:
        """Give each shard the share that its weight says, wait for it, and return the number of the move.

        Raise MoveNotOver and MoveNotDone.
        """
        from cluster.models import Move
        from cluster.moves.control import move_request

        self.check_running()
        move = move_request(Move.Kind.REBALANCE, actor=ACTOR)
        return self._wait(move, time.monotonic() + timeout_s)

    # Health, and what is known.

    def check_shard_health(self, shard_id: str) -> bool:
        """Probe a shard now; return whether it answers as it should. Raise ShardNotFound."""
        from cluster.services.sharding import shard_check

        return shard_check(label=shard_id)

    def check_all_shards_health(self) -> dict[str, bool]:
        """Probe all shards now; return {id: whether it answers as it should}."""
        from cluster.health.shards import shards_check
        from cluster.models import Shard
        from cluster.states import ShardState

        return shards_check(Shard.objects.filter(label__in=self.list_shards()).exclude(state=ShardState.REMOVED))

    def get_shard_info(self) -> dict[str, Any]:
        """Return what `GET /sharding/info` answers, and the moves that are under way.

        How many vectors a node has is as of its last probe.
        """
        from cluster.models import SLOT_KINDS, Move
        from cluster.overview import move_view
        from cluster.shards_overview import sharding_info

        running = Move.objects.filter(ended_at__isnull=True, kind__in=SLOT_KINDS)
        return {**sharding_info(), "moves": [move_view(move) for move in running]}

    def _add_storage(
        self, shard_id: str, storage: StorageEngineInMemory, weight: float, *, is_own: bool = False
    ) -> bool:
        from cluster.library.program_shards import engine_enter

        try:
            is_new = engine_enter(shard_id, storage, weight=weight)
        except BaseException:
            if is_own:
                storage.close()
            raise
        with self._lock:
            self.shard_storages[shard_id] = storage
        _front(storage)
        return is_new

    def _wait(self, move: Move, deadline: float) -> int:
        from cluster.states import MovePhase

        began = time.monotonic()
        number = int(move.pk)
        while move.ended_at is None:
            if time.monotonic() > deadline:
                raise _not_over(move, time.monotonic() - began)
            time.sleep(_LOOK_EVERY_S)
            move.refresh_from_db()
        if MovePhase(move.phase) is not MovePhase.DONE:
            raise MoveNotDone(
                f"move {number} is {move.phase}: {move.error or 'no reason'}",
                detail={"move": number, "phase": move.phase},
            )
        # How many vectors a node has now is known by asking it.
        self.check_all_shards_health()
        return number


class _Running:
    """Which manager this process has: its shards are the program's, so there is one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._manager: weakref.ref[ShardingManagerImpl] | None = None

    def enter(self, manager: ShardingManagerImpl) -> None:
        with self._lock:
            if self._manager is not None and self._manager() is not None:
                raise Conflict("this program has a sharding manager already: shut it down first")
            self._manager = weakref.ref(manager)

    def leave(self, manager: ShardingManagerImpl) -> None:
        with self._lock:
            if self._manager is not None and self._manager() is manager:
                self._manager = None


_running = _Running()


def _front(storage: StorageEngineInMemory) -> None:
    """Have an engine asked as the shard that it is: a row it does not own is neither answered nor taken."""
    port = EnginePort(storage)
    storage.ask_through(port, newest=port, new_ids=port.new_ids)


def _not_over(move: Move, seconds: float) -> MoveNotOver:
    return MoveNotOver(
        f"move {move.pk} is {move.phase} after {seconds:.0f} s; it goes on in the background",
        detail={"move": move.pk, "phase": move.phase},
        retry_after_s=1,
    )
