"""Replication, sharding and both of them from a Python program, with nodes that it starts for each part.

    python examples/replication_sharding_example.py [replication] [sharding] [both] [promotion]

Nothing else needs to run. The nodes are real (`manage.py serve`, each with web workers, Celery and a broker of its own)
on free ports and temporary directories; all of it is gone at the end, also after Ctrl-C. It takes about a minute.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

# Also without an installation: from a checkout.
CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

import requests

from cluster.library import QueryProcessorWithReplication, ReplicationManagerImpl, ShardingManagerImpl
from vectors.client import Client, ClientError, Conflict, Retries
from vectors.datasets import Digits, load_digits
from vectors.errors import MLVectorDBError, NotEnoughCopies, NotPrimary
from vectors.library import Index, StorageEngineInMemory, VectorDTO

NAMESPACE = "digits"
PATIENCE_S = 60.0


class LocalNode:
    """A node of this machine: `manage.py serve` in a process of its own."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._serve: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start it, without waiting."""
        command = [sys.executable, str(CHECKOUT / "manage.py"), "serve", "--port", str(self.port), "--workers", "1"]
        # What the shell says of another node is not for this one.
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("MLVDB_", "DATABASE_URL"))}
        self.directory.mkdir(exist_ok=True)
        with (self.directory / "output").open("ab") as output:
            self._serve = subprocess.Popen(
                [*command, "--data-dir", str(self.directory / "data")],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Ctrl-C is this program's to answer: it ends its nodes one after the other.
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Wait until it answers; raise RuntimeError with its last words when it has ended instead."""
        with Client(self.url, retries=Retries(attempts=1)) as client:
            wait_for(lambda: self._is_ready(client), f"{self.name} to be ready")

    def stop(self) -> None:
        """End it, if it runs, and wait for that."""
        if self._serve is not None and self._serve.poll() is None:
            self._serve.terminate()
            try:
                self._serve.wait(20)
            except subprocess.TimeoutExpired:
                self._serve.kill()
                self._serve.wait()

    def _is_ready(self, client: Client) -> bool:
        assert self._serve is not None
        if self._serve.poll() is not None:
            raise RuntimeError(f"{self.name} has ended:\n{(self.directory / 'output').read_text()[-2000:]}")
        try:
            return client.is_ready()
        except ClientError:
            return False


@contextmanager
def local_nodes(*names: str) -> Iterator[list[LocalNode]]:
    """Start nodes, all at once; end them and remove what they kept when the block ends, however it does."""
    root = Path(tempfile.mkdtemp(prefix="mlvdb-example-"))
    nodes = [LocalNode(name, root / name) for name in names]
    try:
        for node in nodes:
            node.launch()
        for node in nodes:
            node.wait_until_ready()
        yield nodes
    finally:
        for node in nodes:
            node.stop()
        shutil.rmtree(root, ignore_errors=True)


class Interruption:
    """What Ctrl-C or SIGTERM does: it stops the program once, wherever it is, and never what ends it then."""

    def __init__(self) -> None:
        self.number: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)

    def check(self) -> None:
        """Stop the program if it was to be stopped: a destructor or a callback from C swallows what a signal raises."""
        if self.number is not None:
            raise KeyboardInterrupt

    def _interrupt(self, number: int, _frame: object) -> None:
        if self.number is None:
            self.number = number
            raise KeyboardInterrupt


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
        try:
            client.insert([0.0] * 64, namespace=NAMESPACE)
        except Conflict as refusal:
            say(f"A direct write to it is refused: {refusal.status} {refusal.code}.")


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
        try:
            client.insert([0.0] * 64, namespace=NAMESPACE)
        except Conflict as refusal:
            say(f"A direct write to the node is refused: {refusal.status} {refusal.code}.")


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


def both(digits: Digits) -> None:
    """Two shards in this program, each with a replica of its own on a node."""
    with ExitStack() as stack:
        heading("Both: each of two shards has a replica")

        engines = {name: stack.enter_context(StorageEngineInMemory()) for name in ("shard_0", "shard_1")}
        shards = stack.enter_context(ShardingManagerImpl(shard_storages=engines, health_check_interval=1.0))
        replicas = {
            name: stack.enter_context(ReplicationManagerImpl(engine, health_check_interval=1.0))
            for name, engine in engines.items()
        }
        nodes = stack.enter_context(local_nodes("replica_of_0", "replica_of_1"))
        for manager, node in zip(replicas.values(), nodes, strict=True):
            manager.add_replica(node.name, node.url)
        wait_for(
            lambda: all(
                replica["member"] for manager in replicas.values() for replica in replicas_of(manager).values()
            ),
            "the replicas to be members",
        )
        processor = QueryProcessorWithReplication(
            engines["shard_0"],
            Index("cosine"),
            replication_manager=replicas["shard_0"],
            sharding_manager=shards,
            consistency="quorum",
            read_preference="replica",
        )

        step("Write at quorum: each shard's part is on two copies before the answer; read from the replicas")
        processor.upsert_many(vectors_of(digits), NAMESPACE)
        say(f"{len(digits):,} rows: {rows_by_shard(shards, processor)}")
        for node in nodes:
            say(f"  {node.name} holds {count_at(node.url, partial=True):,} of them")
        say(f"Most similar to a grey square are {ids(processor.find_similar([8.0] * 64, 3, NAMESPACE))}.")
        lose_one_of_the_replicas(shards, processor, nodes[1])


def lose_one_of_the_replicas(
    shards: ShardingManagerImpl, processor: QueryProcessorWithReplication, node: LocalNode
) -> None:
    """Stop the replica of one shard: only that shard misses its quorum."""
    step(f"{node.name} goes down: shard_0 has its quorum still, shard_1 has not")
    node.stop()
    # One id of each shard.
    numbered = (f"while-down-{number}" for number in range(1000))
    ids_by_shard = {shards.get_shard_for_id(row_id, NAMESPACE): row_id for row_id in numbered}
    for shard, row_id in sorted(ids_by_shard.items()):
        try:
            processor.insert(VectorDTO([3.0] * 64, {"digit": -1}, id=row_id), NAMESPACE)
            say(f"  {row_id}, of {shard}: written")
        except MLVectorDBError as error:
            say(f"  {row_id}, of {shard}: refused, {error.code}")


def promotion(digits: Digits) -> None:
    """A replica takes the place of this program, which is no primary of anything afterwards: so this comes last."""
    with ExitStack() as stack:
        heading("Promotion: a replica takes over, as one does when the primary is gone")

        storage = stack.enter_context(StorageEngineInMemory())
        manager = stack.enter_context(ReplicationManagerImpl(primary_storage=storage, health_check_interval=1.0))
        processor = QueryProcessorWithReplication(storage, Index("cosine"), replication_manager=manager)
        processor.upsert_many(vectors_of(digits), NAMESPACE)
        first, second = nodes = stack.enter_context(local_nodes("replica_1", "replica_2"))
        add_replicas(manager, nodes)
        promote_a_replica(storage, manager, first, second)


def promote_a_replica(
    storage: StorageEngineInMemory, manager: ReplicationManagerImpl, first: LocalNode, second: LocalNode
) -> None:
    """Make a replica the primary, as if this program were gone."""
    step(f"{first.name} is promoted")
    answer = requests.post(f"{first.url}/replication/promote", timeout=30)
    answer.raise_for_status()
    say(f"POST {first.url}/replication/promote")
    say(f"  {answer.json()['message']}. Two of the three members voted for it: no quorum write can be missing.")
    with Client(second.url) as client:
        client.with_options(consistency="quorum", timeout_s=10).insert([4.0] * 64, id="after", namespace=NAMESPACE)
        say(f"A client of {second.name} wrote a row: refused there, it went on to the new primary by itself.")
        say(f"  {first.name} has {count_at(first.url):,} rows, {second.name} {client.count(namespace=NAMESPACE):,}.")
    wait_for(lambda: manager.get_replica_info()["role"] == "replica", "this program to hear of it")
    try:
        QueryProcessorWithReplication(storage, replication_manager=manager).insert(VectorDTO([5.0] * 64), NAMESPACE)
    except NotPrimary as refusal:
        say(f"This program has heard of it and takes no writes any more: {refusal.message}.")


PARTS = {"replication": replication, "sharding": sharding, "both": both, "promotion": promotion}


def main(wanted: list[str]) -> int:
    """Run the parts, all of them when none is named; return the exit code."""
    if set(wanted) - set(PARTS):
        print(f"the parts are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    digits = load_digits()
    try:
        for number, part in enumerate(wanted or PARTS):
            say("\n" if number else "", end="")
            PARTS[part](digits)
        interruption.check()
    except BaseException:
        # Of whatever class: on its way an interruption may have become the error of what it interrupted.
        if interruption.number is None:
            raise
        print("\nInterrupted; everything that was started has been ended.", flush=True)
        return 128 + interruption.number
    say("\nDone: nodes, broker and workers have been ended, their directories removed.")
    return 0


def replicas_of(manager: ReplicationManagerImpl) -> dict[str, dict]:
    """Return what the manager knows of each replica."""
    return dict(manager.get_replica_info()["replicas"])


def rows_of(manager: ShardingManagerImpl) -> dict[str, int]:
    """Return how many rows each shard has; what a node has, it is asked for now."""
    manager.check_all_shards_health()
    return {name: shard["vector_count"] for name, shard in manager.get_shard_info()["shards"].items()}


def rows_by_shard(manager: ShardingManagerImpl, processor: QueryProcessorWithReplication) -> str:
    """Return the same in words, once every node has heard which slots are its own."""
    rows = processor.get_namespace_count(NAMESPACE)
    wait_for(lambda: sum(rows_of(manager).values()) == rows, f"{rows:,} rows on all shards together")
    return ", ".join(f"{name} {rows:,}" for name, rows in rows_of(manager).items())


def vectors_of(digits: Digits) -> list[VectorDTO]:
    """Return the digits as vectors to write."""
    rows = zip(digits.ids, digits.values, digits.metadata, strict=True)
    return [VectorDTO(values, metadata, id=row_id) for row_id, values, metadata in rows]


def ids(hits: list[dict]) -> str:
    """Return the ids of a search's answer."""
    return ", ".join(str(hit["id"]) for hit in hits)


def count_at(url: str, *, partial: bool = False) -> int:
    """Return how many rows a node has, asked over HTTP; `partial` allows it to leave out what it cannot ask for."""
    with Client(url) as client:
        return client.with_options(partial=partial).count(namespace=NAMESPACE)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds; raise RuntimeError when it does not in a minute."""
    began = time.monotonic()
    while not condition():
        give_up_after(began, what)
        time.sleep(0.1)


def give_up_after(began: float, what: str) -> None:
    """Raise RuntimeError when what was begun has lasted for a minute; stop the program if it was to be stopped."""
    interruption.check()
    if time.monotonic() - began > PATIENCE_S:
        raise RuntimeError(f"waited {PATIENCE_S:.0f} s for {what}")


def heading(text: str) -> None:
    """Print the title of a part."""
    say(f"{text}\n{'=' * len(text)}")


def step(text: str) -> None:
    """Print the title of a step."""
    say(f"\n-- {text}")


def say(text: str, *, end: str = "\n") -> None:
    """Print a line at once."""
    interruption.check()
    print(text, flush=True, end=end)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


interruption = Interruption()

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
