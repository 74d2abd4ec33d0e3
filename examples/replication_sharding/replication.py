"""A storage engine of this program with two nodes as replicas."""

from __future__ import annotations

import time
from contextlib import ExitStack

from cluster.library import QueryProcessorWithReplication, ReplicationManagerImpl
from replication_sharding.nodes import LocalNode, local_nodes
from replication_sharding.rows import NAMESPACE, count_at, refused_directly, replicas_of, vectors_of
from replication_sharding.screen import heading, say, step, wait_for
from vectors.client import Client, Retries
from vectors.datasets import Digits
from vectors.errors import NotEnoughCopies
from vectors.library import Index, StorageEngineInMemory, VectorDTO


def replication(digits: Digits) -> None:
    """A storage engine of this program with two nodes as replicas."""
    with ExitStack() as stack:
        heading("Replication: this program is the primary, two nodes are its replicas")

        storage = stack.enter_context(StorageEngineInMemory())
        manager = stack.enter_context(ReplicationManagerImpl(primary_storage=storage, health_check_interval=1.0))
        processor = QueryProcessorWithReplication(storage, Index("cosine"), replication_manager=manager)
        processor.upsert_many(vectors_of(digits), NAMESPACE)
        say(f"{processor.get_namespace_count(NAMESPACE):,} handwritten digits are in this program's storage engine.")

        first, second = nodes = stack.enter_context(local_nodes("replica_1", "replica_2"))
        say(f"Two empty nodes were started: {first.url} and {second.url}.")

        add_replicas(manager, nodes)
        write_at_levels(storage, manager)
        read_from_a_replica(storage, manager, first)
        lose_a_replica_for_a_while(storage, manager, second)


def add_replicas(manager: ReplicationManagerImpl, nodes: list[LocalNode]) -> None:
    """Register nodes and wait until they have all that was written before."""
    step("Add replicas: they get what is there, in the background, and become members")
    began = time.monotonic()
    for node in nodes:
        manager.add_replica(node.name, node.url)
    wait_for(lambda: all(replica["member"] for replica in replicas_of(manager).values()), "the replicas to be members")
    say(f"Both have caught up, {time.monotonic() - began:.1f} s after they were added:")
    for name, replica in replicas_of(manager).items():
        say(f"  {name}  {replica['state']}, lacks {replica['lag']} operations, holds {count_at(replica['url']):,} rows")


def write_at_levels(storage: StorageEngineInMemory, manager: ReplicationManagerImpl) -> None:
    """Write at each level of consistency."""
    step("Write: a level says how many of the three copies must have a write before it is answered")
    for level, copies in (("one", "this program"), ("quorum", "two of three"), ("all", "all three")):
        processor = QueryProcessorWithReplication(storage, replication_manager=manager, consistency=level)
        began = time.monotonic()
        processor.insert(VectorDTO([1.0] * 64, {"digit": -1}, id=f"written-at-{level}"), NAMESPACE)
        say(f"  {level:6}  answered in {(time.monotonic() - began) * 1000:5.1f} ms, when {copies} had it")
    has_it = manager.replicate_write(VectorDTO([1.0] * 64, {"digit": -1}, id="replicated"), NAMESPACE)
    say(f"replicate_write waits for every replica and says who has the write: {has_it}")


def read_from_a_replica(storage: StorageEngineInMemory, manager: ReplicationManagerImpl, node: LocalNode) -> None:
    """Read from copies, from here and as any other program would."""
    step("Read from a replica")
    processor = QueryProcessorWithReplication(storage, replication_manager=manager, read_preference="replica")
    processor.insert(VectorDTO([2.0] * 64, {"digit": -1}, id="just-written"), NAMESPACE)
    hits = processor.find_similar([2.0] * 64, top_k=2, namespace=NAMESPACE, filter={"digit__gte": 0})
    say(f"From here, by a replica: most similar to a grey square are {', '.join(hit['id'] for hit in hits)}.")
    count = processor.get_namespace_count(NAMESPACE)
    say(f"It counts {count:,} rows: a session sees its own writes, also where they were only just sent to.")
    with Client(node.url, retries=Retries(attempts=1)) as client:
        hits_there = client.search(id="digit-0042", top_k=3, namespace=NAMESPACE)
        say(f"Any program, over HTTP from {node.name}: {', '.join(str(hit.id) for hit in hits_there)} look alike.")
        refused_directly(client, "it")


def lose_a_replica_for_a_while(
    storage: StorageEngineInMemory, manager: ReplicationManagerImpl, node: LocalNode
) -> None:
    """Stop a node, write on, and start it again."""
    step(f"{node.name} goes down, and comes back")
    node.stop()
    say(f"Stopped. Health of the replicas: {manager.check_all_replicas_health()}")
    for level in ("one", "quorum", "all"):
        processor = QueryProcessorWithReplication(storage, replication_manager=manager, consistency=level)
        try:
            processor.insert(VectorDTO([3.0] * 64, {"digit": -1}, id=f"while-down-{level}"), NAMESPACE)
            say(f"  {level:6}  written")
        except NotEnoughCopies as error:
            say(f"  {level:6}  refused, {error.code}: {error.detail['required']} copies would be needed")
    say(f"(What was refused is in the log all the same, and {node.name} gets it when it is back.)")
    began = time.monotonic()
    node.launch()
    node.wait_until_ready()
    wait_for(lambda: count_at(node.url) == storage.count(NAMESPACE), f"{node.name} to catch up")
    say(
        f"Started again on its own data: {time.monotonic() - began:.1f} s later it has all {count_at(node.url):,} rows."
    )
