"""A storage engine of a program before the port: over its copies, and as a shard of the program where it is one.

As a shard an engine answers with the rows that it owns, and takes only those: what others own belongs elsewhere, and
what is written past the slot table would be found by nobody. Its namespaces are those of all shards.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cluster.library.session import Session
from vectors.errors import Conflict
from vectors.library.vectors import Id, id_from

if TYPE_CHECKING:
    from cluster.sharding.view import ShardingView, ShardMember
    from vectors.engine.filters import Filter
    from vectors.library import StorageEngineInMemory
    from vectors.query_processor import RequestOptions

_ATTEMPTS = 5
"""How often a read is planned anew when slots change owner in the middle of it."""

_SCROLL_ROWS = 10_000

_turns = itertools.count()


class OtherShard(Conflict):
    """Raised when a row is written to an engine that is not the shard of its id; `detail`: shard, and ids (some)."""

    code = "other_shard"


def new_ids(count: int) -> list[Id]:
    """Return ids for new vectors, spread over the program's shards as its strategy says. Raise ShardUnavailable."""
    from cluster.query_processor.sharded.routing import drawn_keys

    turn = next(_turns)
    for _ in range(count - 1):
        next(_turns)
    return [id_from(key) for key in drawn_keys(sharding_now(), count, turn=turn)]


def sharding_now() -> ShardingView:
    """Return the program's shards as committed now; raise ValueError when there are none any more."""
    from cluster.topology import topology

    sharding = topology().sharding
    if sharding is None:
        raise ValueError("this program has no shards any more")
    return sharding


def whole_port() -> Any:
    """Return the port over all shards of the program."""
    from cluster.query_processor import ClusterQueryProcessor
    from cluster.replication.knocks import checkpoint_knock

    return ClusterQueryProcessor(request_checkpoint=checkpoint_knock)


def engine_session(storage: StorageEngineInMemory, **options: Any) -> tuple[Session, StorageEngineInMemory]:
    """Return a session with one storage engine, and the engine as seen through it: over its copies."""
    port = EnginePort(storage)
    # A closed engine raises what it raises.
    session = Session(port, check=lambda: storage.query_processor, **options)
    is_shard = port.is_shard()
    seen = storage.through(
        session,
        newest=port if is_shard else None,
        new_ids=port.new_ids if is_shard else None,
    )
    return session, seen


def shards_session(
    storage: StorageEngineInMemory, *, check: Callable[[], object], **options: Any
) -> StorageEngineInMemory:
    """Return what looks like a storage engine, `storage`, and is all shards of the program."""
    whole = whole_port()
    session = Session(whole, check=check, **options)
    return storage.through(session, newest=whole, new_ids=new_ids, outlives=True)


class EnginePort:
    """The methods of the port for one storage engine, whatever it is at that moment. Thread-safe."""

    def __init__(self, storage: StorageEngineInMemory) -> None:
        from cluster.query_processor import ClusterQueryProcessor
        from cluster.replication.knocks import checkpoint_knock

        self._uid = storage.shard_uid
        self._alone = ClusterQueryProcessor(storage.shard_id, request_checkpoint=checkpoint_knock)
        self._whole = whole_port()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return a method of the port; what is particular to a shard is found first, below."""

        def call(*args: Any, **kwargs: Any) -> Any:
            found = self._member()
            if found is None:
                return getattr(self._alone, name)(*args, **kwargs)
            return self._read(name, *args, **kwargs)

        return call

    def is_shard(self) -> bool:
        """Whether the engine is a shard of the program now."""
        return self._member() is not None

    def new_ids(self, count: int) -> Sequence[Id]:
        """Return new ids of rows that this engine may take."""
        from cluster.query_processor.sharded.routing import drawn_keys

        found = self._member()
        if found is None:
            raise ValueError("this storage engine is no shard any more")
        sharding, member = found
        if not member.slots:
            raise OtherShard(f"shard {member.label} owns no part of the ids", detail={"shard": member.label})
        only = replace(sharding, members=(member,), strategy="hash")
        return [id_from(key) for key in drawn_keys(only, count, turn=0)]

    # Writes.

    def insert(self, batch: Any, **given: Any) -> Any:
        """Write one row."""
        return self._write("insert", batch.keys, batch, **given)

    def upsert_many(self, batch: Any, **given: Any) -> Any:
        """Write many rows."""
        return self._write("upsert_many", batch.keys, batch, **given)

    def patch(self, key: bytes, **given: Any) -> Any:
        """Merge metadata into a row."""
        return self._write("patch", [key], key, **given)

    def delete(
        self, *, namespace: str, keys: Sequence[bytes] | None = None, filter: Filter | None = None, **given: Any
    ) -> Any:
        """Delete by keys or by filter."""
        if self._member() is None:
            return self._alone.delete(namespace=namespace, keys=keys, filter=filter, **given)
        if keys is None:
            keys = self._matching(namespace, filter)
        return self._write("delete", keys, namespace=namespace, keys=keys, **given)

    def namespace_put(self, name: str, **given: Any) -> Any:
        """Make or change a namespace; of a shard, that of all shards."""
        return self._writer().namespace_put(name, **given)

    def namespace_drop(self, name: str, **given: Any) -> Any:
        """End a namespace; of a shard, that of all shards."""
        return self._writer().namespace_drop(name, **given)

    def _member(self) -> tuple[ShardingView, ShardMember] | None:
        from cluster.topology import topology

        sharding = topology().sharding
        member = None if sharding is None else sharding.by_uid.get(self._uid)
        return None if sharding is None or member is None else (sharding, member)

    def _writer(self) -> Any:
        return self._alone if self._member() is None else self._whole

    def _write(self, name: str, ids: Sequence[bytes | None], /, *args: Any, **given: Any) -> Any:
        found = self._member()
        if found is None:
            return getattr(self._alone, name)(*args, **given)
        sharding, member = found
        self._check_owned(sharding, member, [key for key in ids if key is not None])
        return getattr(self._whole, name)(*args, **given)

    def _check_owned(self, sharding: ShardingView, member: ShardMember, keys: Sequence[bytes]) -> None:
        from vectors.engine.ids import slots_of

        owned = member.slots.has(slots_of(keys))
        if owned.all():
            return
        others = [key for key, is_owned in zip(keys, owned.tolist(), strict=True) if not is_owned]
        owner = sharding.owner_of(int(slots_of(others[:1])[0]))
        raise OtherShard(
            f"{len(others)} of the ids are not shard {member.label}'s: {id_from(others[0])} is {owner.label}'s",
            field="id",
            detail={"shard": owner.label, "ids": [str(id_from(key)) for key in others[:20]]},
        )

    # Reads of what the shard owns.

    def list_namespaces(self, *, options: RequestOptions | None = None) -> Any:
        """Return the names of the namespaces; of a shard, those of all shards."""
        from vectors.query_processor import DEFAULT_OPTIONS

        return self._writer().list_namespaces(options=options or DEFAULT_OPTIONS)

    def _read(self, name: str, *args: Any, options: RequestOptions | None = None, **given: Any) -> Any:
        from cluster.services.namespaces import namespace_resolve
        from vectors.errors import StaleScope
        from vectors.query_processor import DEFAULT_OPTIONS
        from vectors.query_processor.port import Scope

        for attempt in itertools.count(1):
            found = self._member()
            if found is None:
                return getattr(self._alone, name)(*args, options=options or DEFAULT_OPTIONS, **given)
            sharding, member = found
            spec = None
            if "namespace" in given:
                spec = namespace_resolve(given["namespace"])
                if spec is None:
                    # Answered as for every namespace that there is not.
                    return getattr(self._whole, name)(*args, options=options or DEFAULT_OPTIONS, **given)
            scope = Scope(sharding.epoch, member.slots if member.has_foreign else None, spec)
            scoped = replace(options or DEFAULT_OPTIONS, scope=scope)
            try:
                return getattr(self._alone, name)(*args, options=scoped, **given)
            except StaleScope:
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError

    def _matching(self, namespace: str, filter: Filter | None) -> list[bytes]:
        keys: list[bytes] = []
        after: bytes | None = None
        while True:
            page = self._read(
                "scroll", namespace=namespace, limit=_SCROLL_ROWS, after=after, filter=filter, with_values=False
            ).value
            keys.extend(record.key for record in page.records)
            after = page.next_after
            if after is None:
                return keys
