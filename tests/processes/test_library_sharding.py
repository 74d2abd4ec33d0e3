"""`cluster.library` in programs of their own: storage engines and nodes are the shards of a program."""

from __future__ import annotations

import pytest

from tests.processes.programs import LIBRARY, processes_of, run, start_program

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

BEGINNING = """
from cluster.library import ShardingManagerImpl

def engines(count=2):
    return {f"shard_{number}": StorageEngineInMemory() for number in range(count)}

def rows(manager):
    return {label: shard["vector_count"] for label, shard in manager.get_shard_info()["shards"].items()}

def settled(manager):
    return not manager.get_shard_info()["moves"]
"""


def test_vectors_are_spread_over_the_engines_of_a_program_and_searched_in_all_of_them(tmp_path) -> None:
    program = """
storages = engines()
manager = ShardingManagerImpl(shard_storages=storages, sharding_strategy="hash", health_check_interval=0.5)
assert manager.list_shards() == ["shard_0", "shard_1"] and manager.shard_count == 2
processor = QueryProcessorWithReplication(storages["shard_0"], Index("l2"), sharding_manager=manager)
ids = processor.upsert_many([VectorDTO([float(n), 1.0], {"n": n}, id=n) for n in range(200)], "rows")
assert ids == list(range(200))

homes = {n: manager.get_shard_for_id(n, "rows") for n in range(200)}
assert set(homes.values()) == {"shard_0", "shard_1"} == set(manager.get_shards_for_search("rows"))
for label, storage in storages.items():
    mine = [n for n in range(200) if homes[n] == label]
    assert storage.count("rows") == len(mine) and [vector.id for vector in storage.vectors("rows")] == mine
    assert storage.list_namespaces == ["rows"] and storage.read(mine[0], "rows").metadata == {"n": mine[0]}
assert rows(manager) == {label: storage.count("rows") for label, storage in storages.items()}
assert sum(rows(manager).values()) == processor.get_namespace_count("rows") == 200
assert [vector.id for vector in processor.get_namespace_vectors("rows")] == list(range(200))

hits = processor.find_similar([50.0, 1.0], 5, "rows")
assert [hit["id"] for hit in hits] == [50, 49, 51, 48, 52] and hits.complete and hits.failed == []
assert [hit["id"] for hit in processor.find_similar([50.0, 1.0], 2, "rows", filter={"n__gt": 60})] == [61, 62]
assert processor.delete([50, 49], "rows") == 2 and processor.get_namespace_count("rows") == 198
assert processor.list_namespaces() == ["rows"] and processor.find_similar([1.0], 1, "nothing") == []

# The id comes from whichever is first, and decides.
first = VectorDTO([7.0, 7.0])
label = manager.get_shard_for_vector(first, "rows")
assert first.id is not None and manager.get_shard_for_id(first.id) == label == manager.get_shard_for_vector(first)
assert processor.insert(first, "rows") == first.id and storages[label].read(first.id, "rows") is not None
second = VectorDTO([7.0, 8.0])
assert processor.insert(second, "rows") == second.id
assert storages[manager.get_shard_for_vector(second, "rows")].read(second.id, "rows") is not None

# An engine takes what is its own, also when it is asked itself.
label = manager.get_shard_for_vector(third := VectorDTO([7.0, 9.0]), "rows")
other = {"shard_0": "shard_1", "shard_1": "shard_0"}[label]
error = raised(storages[other].write, third, "rows")
assert error.code == "other_shard" and error.detail["shard"] == label, error
assert storages[label].write(third, "rows") is True
assert processor.find_similar([7.0, 9.0], 1, "rows")[0]["id"] == third.id
own = VectorDTO([7.0, 10.0])
storages[other].write(own, "rows")
assert manager.get_shard_for_id(own.id) == other
assert storages[label].delete(third.id, "rows") is True

info = processor.get_storage_info()
assert info["total_vectors"] == 201 and info["sharding"]["total_shards"] == 2, info
assert manager.check_shard_health("shard_0") is True
assert manager.check_all_shards_health() == {"shard_0": True, "shard_1": True}
assert type(raised(manager.check_shard_health, "shard_9")).__name__ == "ShardNotFound"
assert "already" in str(raised(ShardingManagerImpl, engines()))

manager.shutdown()
manager.shutdown()
assert isinstance(raised(processor.insert, VectorDTO([1.0, 1.0])), ValueError)
with ShardingManagerImpl(storages) as manager:
    processor = QueryProcessorWithReplication(storages["shard_0"], Index("l2"), sharding_manager=manager)
    assert processor.get_namespace_count("rows") == 201
print("done")
"""

    assert run(BEGINNING + program, tmp_path) == "done\n"


def test_new_ids_go_round_the_shards_in_turn_whoever_asks_for_them(tmp_path) -> None:
    program = """
storages = engines(3)
with ShardingManagerImpl(storages, "round_robin") as manager:
    processor = QueryProcessorWithReplication(storages["shard_1"], sharding_manager=manager)
    processor.upsert_many([VectorDTO([1.0, n]) for n in range(60)])
    assert rows(manager) == {"shard_0": 20, "shard_1": 20, "shard_2": 20}, rows(manager)
    seen = []
    for n in range(3):
        vector = VectorDTO([2.0, n])
        seen.append(manager.get_shard_for_vector(vector))
        assert processor.insert(vector) == vector.id
    assert sorted(seen) == ["shard_0", "shard_1", "shard_2"], seen
assert raised(ShardingManagerImpl, storages, "hash").code == "strategy_fixed"
assert raised(ShardingManagerImpl, engines(), "by name").field == "sharding_strategy"
assert raised(ShardingManagerImpl, {}).field == "shard_storages"
assert raised(ShardingManagerImpl, engines(), health_check_interval=0).field == "health_check_interval"
print("done")
"""

    assert run(BEGINNING + program, tmp_path) == "done\n"


def test_what_one_engine_has_is_spread_over_all_and_engines_come_and_go(tmp_path) -> None:
    program = """
full, second = StorageEngineInMemory(), StorageEngineInMemory()
full.write_vectors([VectorDTO([float(n), 1.0], id=n) for n in range(1000)], "rows")
second.write(VectorDTO([1.0, 1.0]), "other")
assert raised(ShardingManagerImpl, {"a": full, "b": second}).code == "not_empty"
second.clear_all()
with ShardingManagerImpl({"a": full, "b": second}, health_check_interval=0.5) as manager:
    processor = QueryProcessorWithReplication(full, Index("l2"), sharding_manager=manager)
    def whole():
        assert processor.get_namespace_count("rows") == 1000
        assert [hit["id"] for hit in processor.find_similar([500.0, 1.0], 3, "rows")] == [500, 499, 501]
        return True
    wait_for(lambda: whole() and settled(manager) and min(rows(manager).values()) > 400, "a half for b")

    third = StorageEngineInMemory()
    assert manager.add_local_shard("c", third) is True and manager.add_local_shard("c", third) is False
    assert raised(manager.add_local_shard, "c", StorageEngineInMemory()).code == "shard_exists"
    wait_for(lambda: whole() and settled(manager) and rows(manager)["c"] > 250, "a third for c")
    assert manager.add_shard("d") is True and manager.add_shard("d") is False
    wait_for(lambda: whole() and settled(manager) and rows(manager)["d"] > 150, "a quarter for d")

    before = rows(manager)
    assert manager.redistribute_data("a", "b") >= 1 and whole()
    after = rows(manager)
    assert (after["a"], after["b"]) == (0, before["a"] + before["b"]), (before, after)
    assert "a" not in manager.get_shards_for_search("rows")
    assert manager.redistribute_all_data() >= 1 and whole()
    assert min(rows(manager).values()) > 150, rows(manager)
    assert raised(manager.redistribute_data, "a", "z").code == "shard_not_found"

    assert manager.remove_shard("a") is True and whole() and manager.list_shards() == ["b", "c", "d"]
    assert manager.remove_shard("a") is False and full.is_closed
    assert manager.remove_shard("c") and manager.remove_shard("d") and whole()
    assert rows(manager) == {"b": 1000} and raised(manager.remove_shard, "b").code == "last_shard"
print("done")
"""

    assert run(BEGINNING + program, tmp_path) == "done\n"


def test_a_manager_of_other_engines_begins_anew(two_nodes, tmp_path) -> None:
    program = """
old = engines()
with ShardingManagerImpl(old) as manager:
    processor = QueryProcessorWithReplication(old["shard_0"], sharding_manager=manager)
    processor.upsert_many([VectorDTO([n, 1.0], id=n) for n in range(50)], "rows")
    manager.add_shard("shard_2", sys.argv[1])
    wait_for(lambda: settled(manager) and rows(manager)["shard_2"] > 5)
new = engines()
with ShardingManagerImpl(new, "round_robin") as manager:
    processor = QueryProcessorWithReplication(new["shard_0"], sharding_manager=manager)
    assert processor.list_namespaces() == [] and manager.list_shards() == ["shard_0", "shard_1"]
    processor.upsert_many([VectorDTO([n, 1.0, 1.0], id=n) for n in range(10)], "rows")
    assert sum(rows(manager).values()) == processor.get_namespace_count("rows") == 10
    # The former engines are engines of their own again, with what they had.
    assert 0 < old["shard_0"].count("rows") < 50
    old["shard_0"].write_vectors([VectorDTO([n, 1.0], id=n) for n in range(50)], "rows")
    assert old["shard_0"].count("rows") == 50 and processor.get_namespace_count("rows") == 10
new["shard_0"].close()
assert "closed" in str(raised(ShardingManagerImpl, new))
print("done")
"""

    assert run(BEGINNING + program, tmp_path, two_nodes[0].base_url) == "done\n"


def test_nodes_are_shards_of_a_program_and_one_that_is_down_is_left_out(two_nodes, tmp_path) -> None:
    program = """
import signal
storages = engines(1)
with ShardingManagerImpl(storages, health_check_interval=0.5) as manager:
    processor = QueryProcessorWithReplication(storages["shard_0"], Index("l2"), sharding_manager=manager, timeout_s=3)
    processor.upsert_many([VectorDTO([float(n), 1.0], id=n) for n in range(300)], "rows")
    assert manager.add_shard("one", sys.argv[1]) is True and manager.add_shard("one", sys.argv[1]) is False
    assert raised(manager.add_shard, "two", sys.argv[1]).code == "shard_exists"
    wait_for(lambda: settled(manager) and rows(manager)["one"] > 100)
    assert processor.get_namespace_count("rows") == 300
    assert manager.check_all_shards_health() == {"shard_0": True, "one": True}
    print("spread", flush=True)
    wait_for(lambda: manager.check_shard_health("one") is False)
    hits = processor.find_similar([150.0, 1.0], 300, "rows")
    assert hits.failed == ["one"] and not hits.complete and 0 < len(hits) < 300
    assert raised(processor.get_namespace_count, "rows").code in ("shard_unavailable", "not_enough_copies")
    wait_for(lambda: manager.get_shards_for_search("rows") == ["shard_0"])
    for n in range(20):
        assert manager.get_shard_for_vector(VectorDTO([1.0, 1.0])) == "shard_0"
        processor.insert(VectorDTO([1000.0, float(n)]), "rows")
    there = next(n for n in range(300) if manager.get_shard_for_id(n) == "one")
    assert raised(processor.insert, VectorDTO([1.0, 1.0], id=there), "rows").transient
    print("left out", flush=True)
    wait_for(lambda: manager.check_shard_health("one") and processor.find_similar([1.0, 1.0], 1, "rows").complete)
    assert processor.get_namespace_count("rows") == 320
    assert manager.remove_shard("one") is True and processor.get_namespace_count("rows") == 320
print("done", flush=True)
"""
    one, _ = two_nodes
    process = start_program(LIBRARY + BEGINNING + program, tmp_path, one.base_url)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "spread\n", process.communicate(timeout=10)
        refused = one.post("/vectors?namespace=rows", {"values": [1, 2]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "not_primary")
        one.stop()
        assert process.stdout.readline() == "left out\n", process.communicate(timeout=10)
        one.start()
        output, errors = process.communicate(timeout=90)
    finally:
        process.kill()

    assert (process.returncode, output, errors) == (0, "done\n", "")
    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_shards_of_a_program_have_replicas_of_their_own_and_levels_hold_for_each(two_nodes, tmp_path) -> None:
    program = """
storages = engines()
with ShardingManagerImpl(storages, health_check_interval=0.5) as shards:
    managers = {label: ReplicationManagerImpl(storages[label], health_check_interval=0.5) for label in storages}
    for (label, manager), url in zip(managers.items(), sys.argv[1:]):
        manager.add_replica(f"of_{label}", url)
    wait_for(lambda: all(r["member"] for m in managers.values() for r in m.get_replica_info()["replicas"].values()))
    for level in ("one", "quorum", "all"):
        processor = QueryProcessorWithReplication(
            storages["shard_0"], Index("l2"), managers["shard_0"], shards, consistency=level, read_preference="replica"
        )
        processor.upsert_many([VectorDTO([float(n), 1.0], id=f"{level}-{n}") for n in range(100)], level)
        assert processor.get_namespace_count(level) == 100
        assert processor.find_similar([50.0, 1.0], 1, level)[0]["id"] == f"{level}-50"
    for label, manager in managers.items():
        vector = VectorDTO([1.0, 2.0])
        while shards.get_shard_for_vector(vector) != label:
            vector = VectorDTO([1.0, 2.0])
        assert manager.replicate_write(vector, "one") == {f"of_{label}": True}
        assert manager.replicate_delete(vector.id, "one") == {f"of_{label}": True}
    info = processor.get_storage_info()
    assert info["replication"]["total_replicas"] == 1 and info["sharding"]["total_shards"] == 2
    stranger = ReplicationManagerImpl(StorageEngineInMemory())
    assert "another" in str(raised(QueryProcessorWithReplication, storages["shard_0"], None, stranger, shards))
    print(shards.get_shard_info()["shards"]["shard_0"]["vector_count"])
"""
    output = run(BEGINNING + program, tmp_path, *(node.base_url for node in two_nodes))

    counts = [
        sum(node.post(f"/count?namespace={name}&partial=true", {}).json()["count"] for name in ("one", "quorum", "all"))
        for node in two_nodes
    ]
    assert counts[0] == int(output)
    assert sum(counts) == 300
