"""Storage engines of this program, and then a node, as shards of one set of vectors."""

from __future__ import annotations

import time
from contextlib import ExitStack

from cluster.library import QueryProcessorWithReplication, ShardingManagerImpl
from replication_sharding.nodes import LocalNode, local_nodes
from replication_sharding.rows import NAMESPACE, ids, refused_directly, rows_by_shard, rows_of, vectors_of
from replication_sharding.screen import give_up_after, heading, say, step, wait_for
from vectors.client import Client, Retries
from vectors.datasets import Digits
from vectors.errors import MLVectorDBError
from vectors.library import Index, StorageEngineInMemory, VectorDTO


def sharding(digits: Digits) -> None:
    """Storage engines of this program, and then a node, as shards of one set of vectors."""
    with ExitStack() as stack:
        heading("Sharding: two storage engines of this program, and a node, hold the vectors between them")

        engines = {name: stack.enter_context(StorageEngineInMemory()) for name in ("shard_0", "shard_1")}
        manager = stack.enter_context(ShardingManagerImpl(shard_storages=engines, health_check_interval=1.0))
        processor = QueryProcessorWithReplication(engines["shard_0"], Index("cosine"), sharding_manager=manager)

        spread_over_shards(manager, processor, digits)
        (node,) = stack.enter_context(local_nodes("shard_2"))
        add_a_remote_shard(manager, processor, node)
        lose_the_remote_shard_for_a_while(manager, processor, node)
        remove_a_shard(manager, processor)


def spread_over_shards(manager: ShardingManagerImpl, processor: QueryProcessorWithReplication, digits: Digits) -> None:
    """Write to all shards, search in all of them."""
    step("Write: the id of a vector says which shard has it")
    processor.upsert_many(vectors_of(digits), NAMESPACE)
    say(f"{len(digits):,} handwritten digits: {rows_by_shard(manager, processor)}")
    for row_id in ("digit-0001", "digit-0042"):
        say(f"  {row_id} is in {manager.get_shard_for_id(row_id, NAMESPACE)}")
    vector = VectorDTO([8.0] * 64, {"digit": -1})
    shard = manager.get_shard_for_vector(vector, NAMESPACE)
    say(f"A vector without an id gets one when its shard is asked for: {shard}.")
    processor.insert(vector, NAMESPACE)
    hits = processor.find_similar(digits.values[41], top_k=3, namespace=NAMESPACE)
    asked = " and ".join(manager.get_shards_for_search(NAMESPACE))
    say(f"A search asks {asked}, and finds the best of all: {ids(hits)}.")


def add_a_remote_shard(manager: ShardingManagerImpl, processor: QueryProcessorWithReplication, node: LocalNode) -> None:
    """Add an empty node, which gets its share while reads and writes go on."""
    step(f"{node.url} becomes a shard: it gets its share in the background")
    began = time.monotonic()
    manager.add_shard(node.name, node.url)
    searches = 0
    while rows_of(manager).get(node.name, 0) == 0 or manager.get_shard_info()["moves"]:
        hits = processor.find_similar([8.0] * 64, top_k=3, namespace=NAMESPACE)
        if len(hits) != 3 or processor.get_namespace_count(NAMESPACE) != 1798:
            raise RuntimeError(f"a row is missing, or there twice: {ids(hits)}")
        searches += 1
        give_up_after(began, "the shard's share")
        time.sleep(0.02)
    say(f"{time.monotonic() - began:.1f} s later: {rows_by_shard(manager, processor)}")
    say(f"Meanwhile {searches} searches and counts saw every row once.")
    with Client(node.url, retries=Retries(attempts=1)) as client:
        refused_directly(client, "the node")


def lose_the_remote_shard_for_a_while(
    manager: ShardingManagerImpl, processor: QueryProcessorWithReplication, node: LocalNode
) -> None:
    """Stop the node, search and write on, and start it again."""
    step(f"{node.name} goes down, and comes back")
    node.stop()
    say(f"Stopped. Health of the shards: {manager.check_all_shards_health()}")
    hits = processor.find_similar([8.0] * 64, top_k=3, namespace=NAMESPACE)
    say(f"A search answers with what the others have, and says so: complete={hits.complete}, failed={hits.failed}.")
    try:
        processor.get_namespace_count(NAMESPACE)
    except MLVectorDBError as error:
        say(f"A count would be wrong, so it is refused: {error.code}.")
    added = [processor.insert(VectorDTO([9.0] * 64, {"digit": -1}), NAMESPACE) for _ in range(20)]
    homes = sorted({manager.get_shard_for_id(row_id) for row_id in added})
    say(f"New vectors get ids of the shards that are there: {' and '.join(homes)}.")
    began = time.monotonic()
    node.launch()
    node.wait_until_ready()
    wait_for(lambda: manager.check_shard_health(node.name), f"{node.name} to be well")
    wait_for(lambda: processor.find_similar([8.0] * 64, 3, NAMESPACE).complete, "a complete answer")
    count = processor.get_namespace_count(NAMESPACE)
    say(f"Started again on its own data: {time.monotonic() - began:.1f} s later all {count:,} rows are there.")


def remove_a_shard(manager: ShardingManagerImpl, processor: QueryProcessorWithReplication) -> None:
    """Drain a shard and remove it, then even out what is left."""
    step("shard_1 is removed: what it has goes to the others first")
    manager.remove_shard("shard_1")
    say(f"Left are {rows_by_shard(manager, processor)}")
    manager.redistribute_all_data()
    say(f"Evened out: {rows_by_shard(manager, processor)}; {processor.get_namespace_count(NAMESPACE):,} rows in all.")
