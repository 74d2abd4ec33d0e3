"""The client between nodes against a real node: stopped, killed, behind a bad link, and with all its threads taken."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cluster.transport import PROTOCOL, client
from cluster.transport.client import PeerClient
from cluster.transport.errors import PeerGarbled, PeerLost, PeerRefused, PeerSilent
from tests.processes.fault_proxy import Fault, FaultProxy
from tests.processes.node import NodeProcess, wait_for

STATUS = "/cluster/node/status"
WORKERS = 2


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[PeerClient]:
    monkeypatch.setattr(client, "_refused_hooks", [])
    monkeypatch.setattr(client, "_app_hooks", tuple)
    made = PeerClient()
    yield made
    made.close()


def test_a_stopped_node_is_waited_for_once_and_called_again_when_it_goes_on(
    node: NodeProcess, calls: PeerClient
) -> None:
    assert calls.json(node.base_url, "GET", STATUS)["protocol"] == PROTOCOL
    # The node answers as soon as its first worker is there: one that came later would go on answering.
    wait_for(lambda: len(node.worker_pids()) == WORKERS, what="all workers")
    workers = node.worker_pids()
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(PeerSilent):
            calls.json(node.base_url, "GET", STATUS, timeout_s=1)
        wait_for(lambda: calls.is_silent(node.base_url), what="the silence")
        began = time.monotonic()
        for _ in range(50):
            with pytest.raises(PeerSilent):
                calls.json(node.base_url, "GET", STATUS)
        assert time.monotonic() - began < 1
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGCONT)

    wait_for(lambda: not calls.is_silent(node.base_url), what="the end of the silence")
    assert calls.json(node.base_url, "GET", STATUS)["protocol"] == PROTOCOL


def test_a_killed_worker_costs_no_call(node: NodeProcess, calls: PeerClient) -> None:
    failures: list[Exception] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                calls.json(node.base_url, "GET", STATUS, timeout_s=10)
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    victim, *others = node.worker_pids()
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: len(set(node.worker_pids()) - {victim}) > len(others), what="the replaced worker")
    over.set()
    for thread in threads:
        thread.join(15)

    # A lost connection is tried once more, and the other worker takes the fresh one.
    assert not failures


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.REFUSE, PeerRefused),
        (Fault.RESET, PeerLost),
        (Fault.GARBAGE, PeerGarbled),
        (Fault.SILENT, PeerSilent),
        (Fault.CUT_ANSWERS, PeerSilent),
        (Fault.CUT_REQUESTS, PeerSilent),
    ],
)
def test_every_fault_of_a_link_has_its_error_and_passes(
    shared_node: NodeProcess, calls: PeerClient, fault: Fault, error: type[Exception]
) -> None:
    link = FaultProxy(shared_node.port)
    try:
        assert calls.json(link.url, "GET", STATUS)["protocol"] == PROTOCOL
        with link.faulty(fault):
            for _ in range(2):
                with pytest.raises(error):
                    calls.json(link.url, "GET", STATUS, timeout_s=0.5, even_if_silent=True)

        wait_for(lambda: not calls.is_silent(link.url), what="the end of the silence")
        assert calls.json(link.url, "GET", STATUS)["protocol"] == PROTOCOL
    finally:
        link.close()


def test_bodies_that_never_end_leave_a_node_alive_to_its_peers(
    make: Callable[..., NodeProcess], calls: PeerClient
) -> None:
    # With one worker all of them surely wait in the process that is asked.
    node = make(MLVDB_WORKERS="1").start()
    stalled = []
    try:
        for _ in range(40):
            sock = socket.create_connection(("127.0.0.1", node.port))
            sock.sendall(
                b"PUT /cluster/node/placement HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"X-MLVDB-Node: 0123456789abcdef0123456789abcdef\r\nContent-Length: 1000\r\n\r\n{"
            )
            stalled.append(sock)

        for _ in range(10):
            assert calls.call(node.base_url, "GET", "/cluster/node/alive", timeout_s=5).status == 204
    finally:
        for sock in stalled:
            sock.close()
