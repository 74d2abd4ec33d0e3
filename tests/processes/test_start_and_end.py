"""How a node starts, what it says, and that it always ends as a whole."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlvdb_site.processes.record import running_record
from tests.processes.node import ROOT, NodeProcess, children_of, free_port, wait_for


def test_a_new_node_prints_its_urls_and_the_password_that_opens_the_admin(shared_node: NodeProcess) -> None:
    output = shared_node.output
    assert f"{shared_node.base_url}/admin/" in output
    password = re.search(r"user admin, password (\S+)", output)
    assert password is not None
    kept = shared_node.data_dir / "admin-password"
    assert kept.read_text().strip() == password[1]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    login = f"{shared_node.base_url}/admin/login/"
    page = shared_node.session.get(login, timeout=10)
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
    assert token is not None
    answer = shared_node.session.post(
        login,
        data={"username": "admin", "password": password[1], "csrfmiddlewaretoken": token[1], "next": "/admin/"},
        headers={"Referer": login},
        timeout=10,
    )
    assert answer.url == f"{shared_node.base_url}/admin/"
    assert answer.status_code == 200


def test_the_terminal_stays_quiet_when_nothing_is_wrong(shared_node: NodeProcess) -> None:
    lines = [line for line in shared_node.output.splitlines() if "|" in line]
    assert lines == []


def test_all_processes_of_a_node_are_in_one_process_group(shared_node: NodeProcess) -> None:
    assert shared_node.process is not None
    # serve, broker, web and its two workers, health, replication, tasks and its three pool processes, beat
    pids = wait_for(lambda: len(found := shared_node.pids()) == 12 and found, what="twelve processes")
    assert {os.getpgid(pid) for pid in pids} == {shared_node.process.pid}


def test_a_task_that_beat_sends_is_executed_by_a_worker(shared_node: NodeProcess) -> None:
    wait_for(
        lambda: shared_node.get("/health").json()["processes"]["round"]["alive"],
        timeout_s=40,
        what="a heartbeat from beat through the broker to a worker",
    )
    health = shared_node.get("/health").json()
    assert health["beat_alive"] is True
    assert set(health["workers_alive"].values()) == {True}
    assert health["warnings"] == []


def test_other_commands_find_the_running_node_by_its_data_dir(shared_node: NodeProcess) -> None:
    shown = shared_node.manage(
        "shell", "--verbosity", "0", "-c", "from mlvdb_site.celery import broker_url; print(broker_url())"
    )
    assert shown.stdout.strip() == shared_node.record["broker_url"], shown.stderr
    assert Path(shared_node.record["broker_url"].removeprefix("redis+socket://")).is_socket()


def test_the_private_broker_is_for_this_user_alone(shared_node: NodeProcess) -> None:
    directory = Path(shared_node.record["broker_url"].removeprefix("redis+socket://")).parent
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_second_node_on_the_data_dir_is_refused_in_one_line(shared_node: NodeProcess) -> None:
    second = NodeProcess(shared_node.data_dir)
    second.output_path = shared_node.data_dir / "second.output"
    assert second.launch().wait(20) == 2
    [line] = second.output.strip().splitlines()
    assert "is in use by the node at" in line
    assert shared_node.base_url in line
    assert f"(pid {shared_node.record['pid']})" in line


def test_a_port_in_use_is_refused_in_one_line_and_nothing_is_left_running() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        second = NodeProcess()
        second.port = taken.getsockname()[1]
        try:
            assert second.launch().wait(20) == 2
            [line] = second.output.strip().splitlines()
            assert f"port {second.port} on 127.0.0.1 is in use" in line
        finally:
            second.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_open_address_without_an_api_key_is_refused_in_one_line(host: str) -> None:
    node = NodeProcess(options=("--host", host))
    try:
        assert node.launch().wait(20) == 2
        [line] = node.output.strip().splitlines()
        assert "create_api_key" in line
    finally:
        node.close()


def test_an_open_address_is_served_once_there_is_a_key() -> None:
    node = NodeProcess(options=("--host", "0.0.0.0"))
    try:
        assert node.manage("migrate", "--verbosity", "0").returncode == 0
        made = node.manage("create_api_key", "test", "--scope", "read")
        assert made.returncode == 0, made.stderr
        node.start()
        wait_for(lambda: node.get("/readyz").status_code == 200)
    finally:
        node.close()


def test_a_setting_that_cannot_be_read_is_one_line() -> None:
    node = NodeProcess(options=("--workers", "many"))
    try:
        assert node.launch().wait(20) == 2
        assert node.output.strip() == "error: MLVDB_WORKERS='many': must be a whole number"
    finally:
        node.close()


def test_sigterm_ends_everything(node: NodeProcess) -> None:
    broker_dir = Path(node.record["broker_url"].removeprefix("redis+socket://")).parent
    assert node.stop(signal.SIGTERM) < 15
    assert node.process is not None
    assert node.process.returncode == 0
    assert node.pids() == []
    assert not broker_dir.exists()
    assert not (node.data_dir / "serve.json").exists()


def test_ctrl_c_ends_everything_in_order(node: NodeProcess) -> None:
    assert node.interrupt() < 15
    assert node.pids() == []
    # The signal reached every process, yet only the supervisor acted on it.
    assert "Traceback" not in node.log_tail(1000)
    assert node.output.rstrip().endswith("Stopped.")


def test_an_open_connection_does_not_hold_up_the_end(node: NodeProcess) -> None:
    with socket.create_connection(("127.0.0.1", node.port)) as idle:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert idle.recv(1024).startswith(b"HTTP/1.1 200")
        assert node.stop() < 15


def test_killing_only_the_supervisor_takes_everything_down(node: NodeProcess) -> None:
    assert len(node.pids()) > 5
    node.kill()
    assert node.pids() == []


def test_a_killed_node_starts_again_at_once_on_the_same_data_dir_and_port(node: NodeProcess) -> None:
    left_over = Path(node.record["broker_url"].removeprefix("redis+socket://")).parent
    node.kill()
    node.start()
    wait_for(lambda: node.get("/readyz").status_code == 200)
    assert not left_over.exists()
    # The password is printed once.
    assert node.output.count("user admin, password ") == 1


def test_a_second_start_is_ready_within_five_seconds(node: NodeProcess) -> None:
    node.stop()
    began = time.monotonic()
    node.start()
    assert time.monotonic() - began < 5


def test_two_nodes_run_from_one_checkout() -> None:
    first, second = NodeProcess(), NodeProcess()
    try:
        first.launch()
        second.launch()
        for node in (first, second):
            wait_for(lambda node=node: node.get("/readyz").status_code == 200, timeout_s=60)  # type: ignore[misc]
        assert first.get("/health").json()["node"] != second.get("/health").json()["node"]
        wait_for(lambda: first.record["ready"] and second.record["ready"], timeout_s=20)
        assert first.record["broker_url"] != second.record["broker_url"]
        first.stop()
        wait_for(lambda: second.get("/readyz").status_code == 200)
    finally:
        try:
            first.close()
        finally:
            second.close()


def test_the_plain_server_command_of_the_documentation_serves_the_node_too() -> None:
    node = NodeProcess()
    port = free_port()
    environ = {**node.process_environ(), "PYTHONPATH": str(ROOT)}
    granian = Path(sys.executable).with_name("granian")
    command = [
        str(granian), "--interface", "wsgi", "--workers", "2", "--blocking-threads", "8", "--respawn-failed-workers",
        "--port", str(port), "mlvdb_site.wsgi:application",
    ]  # fmt: skip
    try:
        assert node.manage("migrate", "--verbosity", "0").returncode == 0
        said = node.data_dir / "granian.output"
        with said.open("wb") as output:
            server = subprocess.Popen(
                command, cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            node.port = port
            wait_for(lambda: node.get("/readyz").status_code == 200, timeout_s=30)
            # granian loses a SIGTERM that comes while a worker is still loading.
            wait_for(lambda: said.read_text().count("Started worker-") == 2, timeout_s=30, what="two workers")
            workers = children_of(server.pid)
            server.terminate()
            server.wait(20)
            assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
        finally:
            server.kill()
            server.wait()
    finally:
        node.close()


def test_a_record_without_a_running_serve_is_not_believed(tmp_path: Path) -> None:
    from mlvdb_site.node import NodeFiles

    files = NodeFiles(tmp_path)
    files.serve_record.write_text('{"pid": 1, "url": "http://127.0.0.1:1"}')
    files.serve_lock.touch()
    assert running_record(files) is None
