"""The fault proxy itself: each fault does to a link what its name says, and a link that is well again works."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest
import requests

from tests.processes.fault_proxy import Fault, FaultProxy


class Server(http.server.ThreadingHTTPServer):
    """Answers every POST with its body, and remembers it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Echo)
        self.heard: list[bytes] = []
        self.arrived = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: links that break are what is tested."""


class Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append(body)
        self.server.arrived.set()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def link(server: Server) -> Iterator[FaultProxy]:
    proxy = FaultProxy(server.server_address[1])
    yield proxy
    proxy.close()


def ask(link: FaultProxy, body: bytes = b"hello", *, timeout: float = 5.0) -> bytes:
    return requests.post(link.url, data=body, timeout=timeout).content


def test_a_link_that_is_well_passes_everything_on(link, server):
    body = bytes(range(256)) * 1000
    assert ask(link, body) == body
    assert server.heard == [body]


@pytest.mark.parametrize("fault", [Fault.REFUSE, Fault.RESET, Fault.GARBAGE, Fault.SILENT])
def test_nothing_reaches_the_node_and_afterwards_all_is_well(link, server, fault):
    with link.faulty(fault):
        for _ in range(2):
            with pytest.raises((requests.RequestException, AssertionError)):
                assert ask(link, timeout=0.3) == b"hello"
    assert server.heard == []
    assert ask(link, b"again") == b"again"


def test_a_refused_connection_is_refused_and_not_reset(link):
    with link.faulty(Fault.REFUSE), pytest.raises(requests.ConnectionError, match="Connection refused"):
        ask(link)


def test_a_cut_of_requests_keeps_them_until_the_link_is_well(link, server):
    link.set(Fault.CUT_REQUESTS)
    answers: list[bytes] = []
    thread = threading.Thread(target=lambda: answers.append(ask(link)))
    thread.start()
    assert not server.arrived.wait(0.2)
    link.set(Fault.PASS)
    thread.join(5)
    assert answers == [b"hello"]


def test_a_cut_of_answers_lets_the_node_act(link, server):
    with link.faulty(Fault.CUT_ANSWERS), pytest.raises(requests.Timeout):
        ask(link, timeout=0.5)
    assert server.heard == [b"hello"]


def test_a_kept_connection_is_switched_too(link, server):
    with requests.Session() as session:
        assert session.post(link.url, data=b"one", timeout=5).content == b"one"
        with link.faulty(Fault.SILENT), pytest.raises(requests.Timeout):
            session.post(link.url, data=b"two", timeout=0.3)
    assert server.heard == [b"one"]


def test_a_slow_link_needs_its_time(link, server):
    link.set(Fault.SLOW, bytes_per_s=20_000)
    with pytest.raises(requests.RequestException):
        ask(link, b"x" * 100_000, timeout=0.5)
    assert server.heard == []
    assert ask(link, b"little") == b"little"


def test_a_late_request_is_overtaken_by_others_and_arrives(link, server):
    link.set(Fault.LATE, late_s=60.0, late=b"later")
    with pytest.raises(requests.Timeout):
        ask(link, b"later", timeout=0.2)
    assert ask(link, b"now") == b"now"
    link.set(Fault.LATE, late_s=0.2, late=b"later")
    assert ask(link, b"later") == b"later"
    assert server.heard == [b"now", b"later"]


def test_a_fault_of_one_sender_leaves_the_others_alone(link, server):
    link.set_for("abc1", Fault.SILENT)
    assert ask(link) == b"hello"
    headers = {"X-MLVDB-Node": "abc1"}
    with pytest.raises(requests.Timeout):
        requests.post(link.url, data=b"cut", headers=headers, timeout=0.3)
    link.heal()
    assert requests.post(link.url, data=b"well", headers=headers, timeout=5).content == b"well"
