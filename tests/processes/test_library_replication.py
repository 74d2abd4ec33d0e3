"""`cluster.library` in programs of their own: the program is the primary, real nodes are its replicas."""

from __future__ import annotations

import signal

import pytest

from tests.processes.node import wait_for
from tests.processes.programs import LIBRARY, processes_of, run, start_program

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]


def test_a_program_has_replicas_writes_to_them_and_reads_from_them(two_nodes, tmp_path) -> None:
    program = """
storage = StorageEngineInMemory()
manager = ReplicationManagerImpl(primary_storage=storage, primary_replica_id="me", health_check_interval=0.5)
plain = QueryProcessorWithReplication(storage, Index("l2"), replication_manager=manager)
ids = plain.upsert_many([VectorDTO([n, 1.0], {"n": n}) for n in range(50)], "rows")
assert manager.add_replica("one", sys.argv[1]) is True
assert manager.add_replica("one", sys.argv[1]) is False
assert manager.add_replica("two", sys.argv[2]) is True
assert manager.list_replicas() == ["one", "two"] and manager.primary_replica == "me"
wait_for(lambda: members(manager) == ["one", "two"])

assert manager.replicate_write(VectorDTO([1.0, 2.0], id="a"), "rows") == {"one": True, "two": True}
batch = [VectorDTO([1.0, 2.0], id="b"), VectorDTO([1.0, 3.0], id="c")]
assert manager.replicate_batch_write(batch, "rows") == {"one": True, "two": True}
assert manager.replicate_delete("a", "rows") == {"one": True, "two": True}
assert manager.replicate_delete("no such row", "rows") == {"one": True, "two": True}

for level in ("one", "quorum", "all"):
    processor = QueryProcessorWithReplication(
        storage, Index("l2"), replication_manager=manager, consistency=level, read_preference="replica"
    )
    id = processor.insert(VectorDTO([9.0, 9.0], {"level": level}), "rows")
    assert processor.find_similar([9.0, 9.0], 1, "rows", filter={"level": level})[0]["id"] == id
    assert processor.delete(id, "rows") == 1
    assert processor.get_namespace_count("rows") == 52
    assert len(processor.get_namespace_vectors("rows")) == 52
    assert processor.list_namespaces() == ["rows"]

storage.write(VectorDTO([1.0, 4.0], id="by the engine"), "rows")
assert manager.check_all_replicas_health() == {"one": True, "two": True} and manager.check_replica_health("one")
assert manager.sync_replica("one", "rows") >= 1
info = plain.get_storage_info()
assert info["total_vectors"] == 53
assert info["replication"]["primary_replica"] == "me" and info["replication"]["workers_alive"] is True
assert manager.replica_count == info["replication"]["healthy_replicas"] == info["replication"]["total_replicas"] == 2

assert type(raised(manager.check_replica_health, "three")).__name__ == "ReplicaNotFound"
assert type(raised(manager.add_replica, "two", sys.argv[1])).__name__ == "ReplicaExists"
assert "me is the primary" in str(raised(manager.add_replica, "me", sys.argv[1]))
other = StorageEngineInMemory()
assert "another" in str(raised(QueryProcessorWithReplication, other, replication_manager=manager))
assert manager.remove_replica("two") is True and manager.remove_replica("two") is False
assert manager.list_replicas() == ["one"]

manager.shutdown()
manager.shutdown()
assert isinstance(raised(manager.replicate_write, VectorDTO([1.0, 1.0])), ValueError)
assert os.environ.get("DJANGO_SETTINGS_MODULE") is None and os.environ["MLVDB_BROKER_URL"] == "redis://127.0.0.1:1/0"
with ReplicationManagerImpl(storage) as manager:
    assert manager.list_replicas() == ["one"]
    assert manager.replicate_write(VectorDTO([5.0, 5.0], id="again"), "rows") == {"one": True}
print("done")
"""
    one, two = two_nodes

    # What the shell says of a node is not for the program, nor for its processes.
    output = run(
        program,
        tmp_path,
        one.base_url,
        two.base_url,
        MLVDB_BROKER_URL="redis://127.0.0.1:1/0",
        MLVDB_ENABLE_REPLICATION="replica",
        MLVDB_ADVERTISE_URL="http://127.0.0.1:1",
        MLVDB_HOST="0.0.0.0",
    )

    assert output == "done\n"
    assert one.post("/count?namespace=rows", {}).json() == {"count": 54}
    assert two.post("/count?namespace=rows", {}).json() == {"count": 53}


def test_a_replica_of_a_program_says_who_the_primary_is_not_and_can_take_its_place(two_nodes, tmp_path) -> None:
    program = """
storage = StorageEngineInMemory()
manager = ReplicationManagerImpl(storage, health_check_interval=0.5)
processor = QueryProcessorWithReplication(storage, replication_manager=manager, consistency="quorum")
manager.add_replica("one", sys.argv[1])
manager.add_replica("two", sys.argv[2])
wait_for(lambda: members(manager) == ["one", "two"])
processor.upsert_many([VectorDTO([n, 1.0], id=n) for n in range(20)])
print("written", flush=True)
wait_for(lambda: manager.get_replica_info()["role"] == "replica")
error = raised(processor.insert, VectorDTO([1.0, 1.0]))
print(error.code, error.detail["primary_url"])
"""
    one, two = two_nodes
    process = start_program(LIBRARY + program, tmp_path, one.base_url, two.base_url)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n", process.communicate(timeout=10)
        refused = one.post("/vectors", {"values": [1, 2]})
        assert (refused.status_code, refused.json()["error"]["detail"]["primary_url"]) == (409, None)
        assert "is a program" in refused.json()["error"]["message"]
        # The program is a member that nobody can ask: it is missing at `all`, not left out of the count.
        assert one.post("/count?consistency=quorum", {}).json() == {"count": 20}
        not_all = one.post("/count?consistency=all", {})
        assert not_all.json()["error"]["detail"]["required"] == 3
        assert not_all.json()["error"]["detail"]["copies"] == {"primary": "it has no URL"}
        unavailable = one.post("/count?read_preference=primary", {})
        assert unavailable.json()["error"]["code"] == "shard_unavailable"

        promoted = one.post("/replication/promote")
        assert promoted.status_code == 200, promoted.text
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()

    assert (output, errors) == (f"not_primary {one.base_url}\n", "")
    wait_for(lambda: one.post("/vectors?consistency=quorum", {"values": [1, 2]}).status_code == 201, timeout_s=30)
    wait_for(lambda: two.post("/count", {}).json() == {"count": 21}, timeout_s=30)
    (former,) = [name for name in one.get("/replication/info").json()["replicas"] if name.startswith("node_")]
    assert "no URL" in one.get("/replication/info").json()["replicas"][former]["last_error"]
    removed = one.session.delete(f"{one.base_url}/replication/replicas/{former}", timeout=30)
    assert removed.status_code == 200, removed.text
    assert one.post("/count?consistency=all", {}).json() == {"count": 21}


def test_the_ids_and_urls_of_a_closed_engine_are_free_again(two_nodes, tmp_path) -> None:
    program = """
with StorageEngineInMemory() as first, ReplicationManagerImpl(first) as manager:
    manager.add_replica("one", "http://127.0.0.1:9")
    assert manager.get_replica_info()["replicas"]["one"]["last_error"].endswith("connection refused")
with StorageEngineInMemory() as second, ReplicationManagerImpl(second) as manager:
    assert manager.list_replicas() == []
    assert manager.add_replica("one", sys.argv[1]) is True
    wait_for(lambda: members(manager) == ["one"])
    print(manager.replicate_write(VectorDTO([1.0])))
"""

    assert run(program, tmp_path, two_nodes[0].base_url) == "{'one': True}\n"


def test_a_program_that_is_killed_leaves_no_process_and_no_directory(tmp_path) -> None:
    program = """
manager = ReplicationManagerImpl(StorageEngineInMemory())
print("started", flush=True)
time.sleep(60)
"""
    process = start_program(LIBRARY + program, tmp_path)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n", process.communicate(timeout=10)
        assert any("mlvdb_site.processes.program" in line for line in processes_of(tmp_path))
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=10)

    wait_for(lambda: not processes_of(tmp_path), timeout_s=20)
    wait_for(lambda: not list(tmp_path.iterdir()), timeout_s=5)


def test_two_managers_share_the_processes_which_are_started_again_when_they_are_killed(tmp_path) -> None:
    program = """
from mlvdb_site.processes.record import running_record

def supervisor():
    from django.conf import settings
    record = running_record(settings.NODE_FILES)
    return record and record.pid

one, two = StorageEngineInMemory(), StorageEngineInMemory()
first, second = ReplicationManagerImpl(one), ReplicationManagerImpl(two, health_check_interval=2.5)
pid = supervisor()
from django_celery_beat.models import PeriodicTask
interval = PeriodicTask.objects.get(task="cluster.tasks.health_replicas").interval
assert (interval.every, interval.period) == (2_500_000, "microseconds"), interval
if os.fork() == 0:
    sys.exit(0)
os.wait()
first.shutdown()
assert supervisor() == pid
os.kill(pid, signal.SIGKILL)
wait_for(lambda: supervisor() is None)
second.add_replica("one", "http://127.0.0.1:9")
assert supervisor() not in (None, pid)
second.shutdown()
assert supervisor() is None
print("done")
"""

    assert run(program, tmp_path) == "done\n"


def test_an_interval_that_is_none_is_refused_before_anything_is_started(tmp_path) -> None:
    program = """
for seconds in (0, 0.01, -1, float("nan"), float("inf")):
    print(raised(ReplicationManagerImpl, None, health_check_interval=seconds).field)
"""

    assert run(program, tmp_path) == 5 * "health_check_interval\n"
